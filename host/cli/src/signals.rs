//! Ctrl-C, SIGTERM and SIGHUP: what they do while something can be tidied up first.
//!
//! A handler once set is never taken away again, so afterwards another one does what the signal
//! does by default. What was ignored when we were started, as by nohup, stays ignored.

use crate::terminal::is_ignored;
use keepwell_engine::Cancel;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_default, register_conditional_shutdown};
use signal_hook::iterator::Signals;
use signal_hook::low_level::unregister;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

/// Those that stand for the default actions.
static DEFAULTS: Mutex<Vec<SigId>> = Mutex::new(Vec::new());

fn heard() -> impl Iterator<Item = i32> {
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal))
}

fn forget_defaults() {
    let mut defaults = DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    defaults.drain(..).for_each(|handler| {
        unregister(handler);
    });
}

/// Set when one came after [`cancel_on_signal`].
pub(crate) fn interrupt() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default).clone()
}

/// They ask to stop; the second time they stop.
pub(crate) fn cancel_on_signal() -> Cancel {
    // Once: of two handlers the second would take the first signal for the second.
    static HEARD: Once = Once::new();
    forget_defaults();
    let flag = interrupt();
    HEARD.call_once(|| {
        for signal in heard() {
            let _ = register_conditional_shutdown(signal, 255, flag.clone());
            let _ = register(signal, flag.clone());
        }
    });
    Cancel::from_flag(flag)
}

/// Turns off what a line editor turned on.
const PASTE_OFF: &[u8] = b"\x1b[?2004l\r\n";

/// While `at_prompt` is set, SIGTERM and SIGHUP end the process and leave the terminal as it is now: an
/// editor that waits for keys does not hear of them.
pub(crate) fn end_at_prompt(at_prompt: Arc<AtomicBool>) -> io::Result<()> {
    let terminal = tcgetattr(io::stdin())?;
    let wanted = heard().filter(|signal| *signal != SIGINT);
    let mut signals = Signals::new(wanted)?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if at_prompt.load(Ordering::Relaxed) {
                let _ = tcsetattr(io::stdin(), OptionalActions::Now, &terminal);
                let _ = io::stderr().write_all(PASTE_OFF);
                #[allow(clippy::exit, reason = "nothing waits to be tidied up at a prompt")]
                std::process::exit(255);
            }
        }
    });
    Ok(())
}

/// Notes that one came, until dropped.
pub(crate) struct Watch {
    came: Arc<AtomicBool>,
    handlers: Vec<SigId>,
}

impl Watch {
    pub(crate) fn start() -> Self {
        forget_defaults();
        let came = Arc::new(AtomicBool::new(false));
        let handlers = heard().filter_map(|signal| register(signal, came.clone()).ok()).collect();
        Self { came, handlers }
    }

    /// Set by the first that comes.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.came.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let always = Arc::new(AtomicBool::new(true));
        let by_default = |signal| register_conditional_default(signal, always.clone()).ok();
        let mut defaults = DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner);
        defaults.extend(heard().filter_map(by_default));
        self.handlers.drain(..).for_each(|handler| {
            unregister(handler);
        });
    }
}
