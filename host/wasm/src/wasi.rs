//! What components made by ordinary toolchains import besides the contract: WASI 0.2. None of it leads
//! anywhere: each function answers with what says "no", whatever its type. Beyond that there are the rights to clock,
//! random numbers and environment, and lines written to the standard streams, which are shown.

use crate::state::{State, now};
use std::time::Duration;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::{Component, Linker, Resource, ResourceAny, ResourceType, Type, Val};
use wasmtime::{AsContextMut, Engine, Error, Result, StoreContextMut};

/// Stands for descriptors, streams and all other things of WASI.
pub(crate) struct Stub;

/// Random bytes at a time.
const RANDOM_MAX: u64 = 1 << 20;
/// What output streams take at a time.
const WRITE_MAX: u64 = 4096;
/// Cases of errors that say what is the matter, the best first.
const REFUSALS: [&str; 4] = ["access", "access-denied", "not-permitted", "closed"];

/// Links whatever a component imports of WASI.
pub(crate) fn link(
    linker: &mut Linker<State>,
    component: &Component,
    engine: &Engine,
) -> Result<()> {
    for (name, item) in component.component_type().imports(engine) {
        if let ComponentItem::ComponentInstance(interface) = item.ty
            && name.starts_with("wasi:")
        {
            link_interface(linker, name, &interface, engine)?;
        }
    }
    Ok(())
}

fn link_interface(
    linker: &mut Linker<State>,
    interface: &str,
    items: &ComponentInstance,
    engine: &Engine,
) -> Result<()> {
    // Types are the same whatever the patch version is.
    let short = interface.split('@').next().unwrap_or(interface).to_owned();
    let mut instance = linker.instance(interface)?;
    for (name, item) in items.exports(engine) {
        match item.ty {
            ComponentItem::ComponentFunc(_) => {
                let called = format!("{short} {name}");
                instance.func_new(name, move |store, ty, given, results| {
                    answer(&called, store, &ty, given, results)
                })?;
            }
            ComponentItem::Resource(_) => {
                instance.resource(name, ResourceType::host::<Stub>(), |mut store, _| {
                    store.data_mut().stubs -= 1;
                    Ok(())
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn answer(
    called: &str,
    mut store: StoreContextMut<'_, State>,
    ty: &ComponentFunc,
    given: &[Val],
    results: &mut [Val],
) -> Result<()> {
    let known = granted(called, &mut store, given)?;
    for (slot, ty) in results.iter_mut().zip(ty.results()) {
        *slot = match &known {
            Some(value) => value.clone(),
            None => refusal(called, &mut store, &ty)?,
        };
    }
    Ok(())
}

/// What is answered otherwise than by a refusal.
fn granted(
    called: &str,
    store: &mut StoreContextMut<'_, State>,
    given: &[Val],
) -> Result<Option<Val>> {
    let ok = |value| Val::Result(Ok(value));
    let state = store.data_mut();
    Ok(Some(match called {
        "wasi:cli/environment get-environment" => {
            let names = state.rights().environment.iter();
            let pairs = names.filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)));
            let pair = |(name, value)| Val::Tuple(vec![Val::String(name), Val::String(value)]);
            Val::List(pairs.map(pair).collect())
        }
        "wasi:cli/exit exit" => return Err(Error::msg("it ended itself (exit)")),
        "wasi:random/random get-random-bytes"
        | "wasi:random/insecure get-insecure-random-bytes" => {
            let Some(Val::U64(length)) = given.first() else { return Ok(None) };
            if *length > RANDOM_MAX {
                return Err(Error::msg(format!("it asked for {length} random bytes at once")));
            }
            Val::List(random(state, *length as usize)?.into_iter().map(Val::U8).collect())
        }
        "wasi:random/random get-random-u64" | "wasi:random/insecure get-insecure-random-u64" => {
            Val::U64(random_word(state)?)
        }
        "wasi:random/insecure-seed insecure-seed" => {
            Val::Tuple(vec![Val::U64(random_word(state)?), Val::U64(random_word(state)?)])
        }
        "wasi:clocks/wall-clock now" => {
            let now = clock(state);
            let field = |name: &str, value| (name.to_owned(), value);
            Val::Record(vec![
                field("seconds", Val::U64(now.as_secs())),
                field("nanoseconds", Val::U32(now.subsec_nanos())),
            ])
        }
        "wasi:clocks/monotonic-clock now" => {
            Val::U64(u64::try_from(clock(state).as_nanos()).unwrap_or(u64::MAX))
        }
        "wasi:clocks/monotonic-clock resolution" => Val::U64(1),
        "wasi:io/streams [method]output-stream.check-write" => {
            ok(Some(Box::new(Val::U64(WRITE_MAX))))
        }
        "wasi:io/streams [method]output-stream.write"
        | "wasi:io/streams [method]output-stream.blocking-write-and-flush" => {
            let bytes = match given.get(1) {
                Some(Val::List(bytes)) => bytes.as_slice(),
                _ => &[],
            };
            let bytes = bytes.iter().filter_map(|byte| match byte {
                Val::U8(byte) => Some(*byte),
                _ => None,
            });
            state.print(bytes);
            ok(None)
        }
        "wasi:io/streams [method]output-stream.flush"
        | "wasi:io/streams [method]output-stream.blocking-flush" => ok(None),
        "wasi:io/poll [method]pollable.ready" => Val::Bool(true),
        "wasi:io/poll poll" => {
            let Some(Val::List(all)) = given.first() else { return Ok(None) };
            Val::List((0..).take(all.len()).map(Val::U32).collect())
        }
        _ => return Ok(None),
    }))
}

/// Always the same without the right to them: interpreters can't start without any.
fn random(state: &State, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0x55; length];
    if state.rights().random {
        getrandom::fill(&mut bytes).map_err(|error| Error::msg(error.to_string()))?;
    }
    Ok(bytes)
}

fn random_word(state: &State) -> Result<u64> {
    let mut word = [0; 8];
    word.copy_from_slice(&random(state, 8)?);
    Ok(u64::from_le_bytes(word))
}

/// It stands still without the right to it.
fn clock(state: &State) -> Duration {
    if state.rights().clock { now() } else { Duration::ZERO }
}

/// "No" in a type: the error of a result, the emptiest value of the others.
fn refusal(called: &str, store: &mut StoreContextMut<'_, State>, ty: &Type) -> Result<Val> {
    if let Type::Result(result) = ty {
        // The end of a stream is no refusal.
        if !called.starts_with("wasi:io/") {
            store.data_mut().refused_call(called);
        }
        let error = match result.err() {
            Some(ty) => Some(Box::new(refusal_value(store, &ty)?)),
            None => None,
        };
        return Ok(Val::Result(Err(error)));
    }
    refusal_value(store, ty)
}

fn refusal_value(store: &mut StoreContextMut<'_, State>, ty: &Type) -> Result<Val> {
    Ok(match ty {
        Type::Bool => Val::Bool(false),
        Type::S8 => Val::S8(0),
        Type::U8 => Val::U8(0),
        Type::S16 => Val::S16(0),
        Type::U16 => Val::U16(0),
        Type::S32 => Val::S32(0),
        Type::U32 => Val::U32(0),
        Type::S64 => Val::S64(0),
        Type::U64 => Val::U64(0),
        Type::Float32 => Val::Float32(0.0),
        Type::Float64 => Val::Float64(0.0),
        Type::Char => Val::Char(' '),
        Type::String => Val::String(String::new()),
        Type::List(_) => Val::List(Vec::new()),
        Type::Option(_) => Val::Option(None),
        Type::Flags(_) => Val::Flags(Vec::new()),
        Type::Record(record) => {
            let fields = record.fields();
            let field = |field: wasmtime::component::types::Field<'_>| {
                Ok((field.name.to_owned(), refusal_value(store, &field.ty)?))
            };
            Val::Record(fields.map(field).collect::<Result<_>>()?)
        }
        Type::Tuple(tuple) => {
            Val::Tuple(tuple.types().map(|ty| refusal_value(store, &ty)).collect::<Result<_>>()?)
        }
        Type::Enum(cases) => {
            let names: Vec<&str> = cases.names().collect();
            Val::Enum(best(&names).to_owned())
        }
        Type::Variant(variant) => {
            let names: Vec<&str> = variant.cases().map(|case| case.name).collect();
            let name = best(&names);
            let case = variant.cases().find(|case| case.name == name);
            let payload = match case.and_then(|case| case.ty) {
                Some(ty) => Some(Box::new(refusal_value(store, &ty)?)),
                None => None,
            };
            Val::Variant(name.to_owned(), payload)
        }
        Type::Result(result) => {
            let error = result.err().map(|ty| refusal_value(store, &ty)).transpose()?;
            Val::Result(Err(error.map(Box::new)))
        }
        Type::Own(_) | Type::Borrow(_) => Val::Resource(stub(store)?),
        _ => return Err(Error::msg("it uses a part of WASI that is not there")),
    })
}

fn best<'a>(names: &[&'a str]) -> &'a str {
    let known = REFUSALS.iter().find_map(|known| names.iter().find(|name| *name == known));
    known.or(names.first()).copied().unwrap_or_default()
}

fn stub(store: &mut StoreContextMut<'_, State>) -> Result<ResourceAny> {
    let state = store.data_mut();
    state.stubs += 1;
    if state.stubs > state.handles_max {
        return Err(Error::msg("it holds too many handles"));
    }
    Resource::<Stub>::new_own(0).try_into_resource_any(store.as_context_mut())
}
