//! For plugins that decide which snapshots to keep (world `keepwell:retention/retention-policy`).

use crate::bindings::retention as bindings;
use crate::{Failure, OptionValue, options};
use serde::de::DeserializeOwned;

pub use bindings::exports::keepwell::retention::policy::{Decision, Snapshot, Verdict};

pub use bindings::exports::keepwell::retention::about::Info;

/// What the plugin says of itself.
pub trait Plugin {
    /// Must give the same answer each time; the host caches it.
    fn describe() -> Info;
}

/// A retention policy: a pure function.
pub trait Policy {
    /// what its options are read into, see [`crate::options`]
    type Options: DeserializeOwned;

    /// One decision for each snapshot, in their order: newest first. `now` is in Unix seconds.
    fn decide(
        now: i64,
        snapshots: Vec<Snapshot>,
        options: Self::Options,
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
        P::decide(now, snapshots, options::parse(&options)?)
    }
}

/// Makes the component of a type that implements `Plugin` and `retention::Policy`.
#[macro_export]
macro_rules! export_retention_policy {
    ($plugin:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::retention::Adapter<$plugin>;
            $crate::bindings::retention::export_bindings!(Exported with_types_in $crate::bindings::retention);
        };
    };
}
