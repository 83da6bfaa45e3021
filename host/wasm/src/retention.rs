//! Retention policies of contract 0.1.

use crate::bindings::retention::RetentionPolicy as Bindings;
use crate::bindings::retention::exports::keepwell::retention::policy;
use crate::convert::{info, option_values};
use crate::state::{State, limited, trap};
use crate::{LoadError, Plugin, PluginInfo};
use keepwell_engine::plugin::{Decision, Failure, OptionValue, PolicySnapshot, RetentionPolicy};
use wasmtime::Store;

pub(crate) struct WasmPolicy {
    store: Store<State>,
    bindings: Bindings,
}

impl WasmPolicy {
    pub(crate) fn new(plugin: &Plugin) -> Result<Self, LoadError> {
        let (store, bindings) =
            limited(plugin, |store, code, linker| Bindings::instantiate(store, code, linker))?;
        Ok(Self { store, bindings })
    }
}

pub(crate) fn describe(plugin: &Plugin) -> Result<PluginInfo, LoadError> {
    let WasmPolicy { mut store, bindings } = WasmPolicy::new(plugin)?;
    let described = bindings.keepwell_retention_about().call_describe(&mut store);
    let given = described.map_err(|error| trap(&mut store, &error))?;
    Ok(info(given.name, given.version, given.summary, given.options, given.capabilities))
}

impl RetentionPolicy for WasmPolicy {
    fn decide(
        &mut self,
        now: i64,
        snapshots: Vec<PolicySnapshot>,
        options: Vec<OptionValue>,
    ) -> Result<Vec<Decision>, Failure> {
        let snapshots: Vec<policy::Snapshot> = snapshots
            .into_iter()
            .map(|snapshot| policy::Snapshot {
                taken: snapshot.taken,
                utc_offset_seconds: snapshot.utc_offset_seconds,
                finished: snapshot.finished,
                protected: snapshot.protected,
                size: snapshot.size,
                verified: snapshot.verified,
                notes: snapshot.notes,
                archives: snapshot.archives,
            })
            .collect();
        let options = option_values(options);
        let policy = self.bindings.keepwell_retention_policy();
        let decided = policy.call_decide(&mut self.store, now, &snapshots, &options);
        let decisions = decided
            .map_err(|error| trap(&mut self.store, &error))?
            .map_err(|failure| self.store.data().blamed(failure.into()))?;
        let (found, wanted) = (decisions.len(), snapshots.len());
        if found != wanted {
            let problem = format!("the policy made {found} decisions for {wanted} snapshots");
            return Err(self.store.data().blamed(Failure::Invalid(problem)));
        }
        let native = decisions.into_iter().map(|decision| Decision {
            keep: decision.verdict == policy::Verdict::Keep,
            reason: decision.reason,
        });
        Ok(native.collect())
    }
}
