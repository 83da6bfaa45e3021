//! For plugins that decide which snapshots to keep (world `keepwell:retention/retention-policy`).

use crate::retention_bindings as bindings;
use crate::{Failure, OptionValue};

pub use bindings::exports::keepwell::retention::policy::{Decision, Snapshot, Verdict};

pub use bindings::exports::keepwell::retention::about::Info;

/// What the plugin says of itself.
pub trait Plugin {
    /// Must give the same answer each time; the host caches it.
    fn describe() -> Info;
}

/// A retention policy: a pure function.
pub trait Policy {
    /// One decision for each snapshot, in their order: newest first.
    fn decide(
        now: i64,
        snapshots: Vec<Snapshot>,
        options: Vec<OptionValue>,
    ) -> Result<Vec<Decision>, Failure>;
}

/// A finished, unprotected snapshot taken then (Unix seconds): what tests of policies start from.
pub fn snapshot_at(taken: i64) -> Snapshot {
    Snapshot {
        taken,
        utc_offset_seconds: 0,
        finished: true,
        protected: false,
        size: None,
        verified: None,
        notes: String::new(),
        archives: Vec::new(),
    }
}

#[doc(hidden)]
pub struct Adapter<P>(std::marker::PhantomData<P>);

impl<P: Plugin> bindings::exports::keepwell::retention::about::Guest for Adapter<P> {
    fn describe() -> Info {
        crate::install_panic_hook();
        P::describe()
    }
}

impl<P: Policy> bindings::exports::keepwell::retention::policy::Guest for Adapter<P> {
    fn decide(
        now: i64,
        snapshots: Vec<Snapshot>,
        options: Vec<OptionValue>,
    ) -> Result<Vec<Decision>, Failure> {
        crate::install_panic_hook();
        P::decide(now, snapshots, options)
    }
}

/// Makes the component of a type that implements `Plugin` and `retention::Policy`.
#[macro_export]
macro_rules! export_retention_policy {
    ($plugin:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::retention::Adapter<$plugin>;
            $crate::retention_bindings::export_bindings!(Exported with_types_in $crate::retention_bindings);
        };
    };
}
