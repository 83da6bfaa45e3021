//! The threads that a client's network tasks run on, and what ends the waiting for them.

use crate::error::{Error, Result};
use std::future::{Future, pending};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// How often it is looked at whether the user wants to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Tells when the user wants to stop.
#[derive(Clone)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// What `future` gives, unless the user wants to stop before.
    pub(crate) async fn or<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let mut wanted = self.0.clone();
        let stop = async {
            if wanted.wait_for(|wanted| *wanted).await.is_err() {
                pending::<()>().await;
            }
        };
        // What is there already counts.
        tokio::select! {
            biased;
            outcome = future => outcome,
            () = stop => Err(Error::Interrupted),
        }
    }
}

/// Looks at the flag until it is set.
async fn look(flag: Arc<AtomicBool>, tell: watch::Sender<bool>) {
    while !flag.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tell.send_replace(true);
    // Who asks later is told as well.
    pending::<()>().await;
}

/// A runtime that any thread may drop last, one of its own as well: a task that ends late may hold
/// the last handle. Tasks that still run then are dropped.
pub(crate) struct Network {
    runtime: Option<Runtime>,
    interrupt: Interrupt,
}

impl Network {
    /// The flag says that the user wants to stop.
    pub(crate) fn start(flag: Arc<AtomicBool>) -> Result<Self> {
        let built = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("network")
            .enable_all()
            .build();
        let failed = |problem| Error::protocol(format!("unable to start threads: {problem}"));
        let runtime = built.map_err(failed)?;
        let (tell, hear) = watch::channel(false);
        runtime.spawn(look(flag, tell));
        Ok(Self { runtime: Some(runtime), interrupt: Interrupt(hear) })
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Waits for `future`, as long as the user wants to.
    pub(crate) fn run<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.block_on(self.interrupt.or(future))
    }
}

impl Deref for Network {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        match &self.runtime {
            Some(runtime) => runtime,
            None => unreachable!("it is taken when dropped only"),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn waiting_ends_when_the_user_wants_to_stop() {
        let flag = Arc::new(AtomicBool::new(false));
        let network = Network::start(flag.clone()).unwrap();
        assert_eq!(network.run(async { Ok(1) }).unwrap(), 1);
        flag.store(true, Ordering::Relaxed);
        let forever = pending::<Result<()>>;
        assert!(matches!(network.run(forever()), Err(Error::Interrupted)));
        assert!(matches!(network.run(forever()), Err(Error::Interrupted)), "from then on");
    }

    #[test]
    fn a_task_may_hold_the_last_handle() {
        let network = Arc::new(Network::start(Arc::default()).unwrap());
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
