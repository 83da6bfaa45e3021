//! What wasmtime makes of `wit/`: host traits for imports, calls for exports.
#![allow(
    unsafe_code,
    unreachable_pub,
    clippy::all,
    reason = "generated: the lifting and lowering of the component model"
)]

pub(crate) mod archive {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/archive"],
        world: "keepwell:archive/archive-plugin",
        imports: { default: trappable },
        with: {
            "keepwell:archive/filesystem.directory": crate::state::DirectoryHandle,
            "keepwell:archive/filesystem.file": crate::state::FileHandle,
            "keepwell:archive/patterns.pattern-list": crate::state::PatternHandle,
            "keepwell:archive/archive-sink.stream": crate::state::StreamHandle,
            "keepwell:archive/random-access.bytes": crate::state::BytesHandle,
            "keepwell:archive/commands.process": crate::state::ProcessHandle,
            "keepwell:archive/web.response": crate::state::ResponseHandle,
        },
    });
}

pub(crate) mod retention {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/retention"],
        world: "keepwell:retention/retention-policy",
        imports: { default: trappable },
        with: {
            "keepwell:types/types@0.1.0": super::archive::keepwell::types::types,
            "keepwell:types/log@0.1.0": super::archive::keepwell::types::log,
        },
    });
}

pub(crate) mod formatter {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/formatter"],
        world: "keepwell:formatter/output-formatter",
        imports: { default: trappable },
        with: {
            "keepwell:types/types@0.1.0": super::archive::keepwell::types::types,
            "keepwell:types/log@0.1.0": super::archive::keepwell::types::log,
        },
    });
}
