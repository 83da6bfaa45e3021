//! The threads that a client's network tasks run on.

use crate::error::{Error, Result};
use std::ops::Deref;
use tokio::runtime::Runtime;

/// A runtime that any thread may drop last, one of its own as well: a task that ends late may hold
/// the last handle. Tasks that still run then are dropped.
pub(crate) struct Network(Option<Runtime>);

impl Network {
    pub(crate) fn start() -> Result<Self> {
        let built = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("network")
            .enable_all()
            .build();
        let failed = |problem| Error::protocol(format!("unable to start threads: {problem}"));
        built.map(|runtime| Self(Some(runtime))).map_err(failed)
    }
}

impl Deref for Network {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        match &self.0 {
            Some(runtime) => runtime,
            None => unreachable!("it is taken when dropped only"),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    #[test]
    fn a_task_may_hold_the_last_handle() {
        let network = Arc::new(Network::start().unwrap());
        let (go, wait) = channel::<()>();
        let (say, hear) = channel();
        let held = network.clone();
        network.spawn(async move {
            wait.recv().unwrap();
            drop(held);
            say.send(()).unwrap();
        });
        drop(network);
        go.send(()).unwrap();
        // A panic in the task would be heard as a closed channel.
        hear.recv().unwrap();
    }
}
