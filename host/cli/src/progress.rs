//! How far a verb has come: a bar on a terminal, plain lines elsewhere, JSON where asked.

use crate::args::option;
use clap::{Arg, ArgMatches};
use indicatif::{ProgressBar, ProgressStyle};
use keepwell_engine::Counters;
use keepwell_model::size::human;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between redraws of a bar, and between lines.
const REDRAW: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(30);
const JSON_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn progress_option() -> Arg {
    option("progress", "HOW", "How to show progress: auto, bar, lines, json (on stderr) or none")
        .value_parser(["auto", "bar", "lines", "json", "none"])
        .default_value("auto")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Json,
    None,
}

fn template(text: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(text);
    style.unwrap_or_else(|_| ProgressStyle::default_spinner()).progress_chars("=> ")
}

/// Where lines and progress go. Clones share the bar.
#[derive(Clone)]
pub(crate) struct Shower {
    bar: Option<ProgressBar>,
    /// lines don't tear each other apart
    turn: Arc<Mutex<()>>,
}

impl Shower {
    /// Without a bar: for what is said before anything runs.
    pub(crate) fn plain() -> Self {
        Self { bar: None, turn: Arc::default() }
    }

    /// A line above the bar, unless the log filter wants less.
    pub(crate) fn line(&self, text: &str) {
        if tracing::enabled!(tracing::Level::INFO) {
            self.print(text);
        }
    }

    /// A line of warning above the bar.
    pub(crate) fn warn(&self, text: &str) {
        if tracing::enabled!(tracing::Level::WARN) {
            self.print(text);
        }
    }

    fn print(&self, text: &str) {
        let print = || {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// Shows counters until it is finished.
pub(crate) struct Progress {
    pub(crate) shower: Shower,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    pub(crate) fn start(matches: &ArgMatches, counters: Arc<Counters>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let style = match matches.get_one::<String>("progress").map(String::as_str) {
            Some("bar") => Style::Bar,
            Some("lines") => Style::Lines,
            Some("json") => Style::Json,
            Some("none") => Style::None,
            _ if terminal => Style::Bar,
            _ => Style::Lines,
        };
        let bar = (style == Style::Bar).then(|| {
            let bar = ProgressBar::no_length();
            bar.set_style(template("{spinner} {wide_msg}"));
            bar
        });
        let shower = Shower { bar, turn: Arc::default() };
        let stop = Arc::new(AtomicBool::new(false));
        let ticker = Ticker { style, counters, shower: shower.clone(), stop: stop.clone() };
        let thread = (style != Style::None).then(|| std::thread::spawn(move || ticker.run()));
        Self { shower, stop, thread }
    }

    /// Takes the bar away.
    pub(crate) fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        if let Some(bar) = &self.shower.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

struct Ticker {
    style: Style,
    counters: Arc<Counters>,
    shower: Shower,
    stop: Arc<AtomicBool>,
}

/// Counters at one moment.
struct Reading {
    seconds: f64,
    bytes: u64,
    entries: u64,
    new_bytes: u64,
    total: u64,
}

impl Reading {
    fn rate(&self) -> u64 {
        if self.seconds > 0.0 { (self.bytes as f64 / self.seconds) as u64 } else { 0 }
    }

    /// Seconds left, where the total is known.
    fn remaining(&self) -> Option<u64> {
        let left = self.total.checked_sub(self.bytes).filter(|_| self.total > 0)?;
        (self.rate() > 0).then(|| left / self.rate())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} · {}/s · {} files",
            rounded(self.bytes),
            rounded(self.rate()),
            self.entries
        );
        if self.total > self.bytes {
            text += &format!(" · {} %", self.bytes.saturating_mul(100) / self.total);
        }
        if let Some(seconds) = self.remaining().filter(|seconds| *seconds > 0) {
            text += &format!(" · {}:{:02} left", seconds / 60, seconds % 60);
        }
        text
    }

    fn json(&self, done: bool) -> String {
        json!({
            "type": "progress",
            "bytes": self.bytes,
            "total": (self.total > 0).then_some(self.total),
            "rate": self.rate(),
            "files": self.entries,
            "new-bytes": self.new_bytes,
            "seconds": (self.seconds * 1000.0).round() / 1000.0,
            "remaining": self.remaining(),
            "done": done,
        })
        .to_string()
    }
}

/// A size that does not jitter in its last digits.
fn rounded(bytes: u64) -> String {
    let bits = (bytes.max(1).ilog2() / 10).saturating_sub(1) * 10;
    human(bytes >> bits << bits)
}

impl Ticker {
    fn read(&self, started: Instant) -> Reading {
        Reading {
            seconds: started.elapsed().as_secs_f64(),
            bytes: Counters::get(&self.counters.bytes),
            entries: Counters::get(&self.counters.entries),
            new_bytes: Counters::get(&self.counters.new_bytes),
            total: Counters::get(&self.counters.total),
        }
    }

    fn run(self) {
        let started = Instant::now();
        let pause = match self.style {
            Style::Bar => REDRAW,
            Style::Json => JSON_EVERY,
            Style::Lines | Style::None => LINE_EVERY,
        };
        loop {
            std::thread::park_timeout(pause);
            let over = self.stop.load(Ordering::Relaxed);
            let reading = self.read(started);
            match self.style {
                Style::Bar => {
                    if let Some(bar) = &self.shower.bar {
                        if reading.total > 0 && bar.length().is_none() {
                            bar.set_style(template("{spinner} [{bar:16}] {wide_msg}"));
                        }
                        if reading.total > 0 {
                            // A guess may be too small.
                            bar.set_length(reading.total.max(reading.bytes));
                            bar.set_position(reading.bytes);
                        }
                        bar.set_message(reading.text());
                        bar.tick();
                    }
                }
                Style::Json => self.shower.line(&reading.json(over)),
                Style::Lines if !over => {
                    let seconds = reading.seconds.round();
                    self.shower.line(&format!("processed {} in {seconds}s", reading.text()));
                }
                Style::Lines | Style::None => {}
            }
            if over {
                return;
            }
        }
    }
}
