//! `task`: what a server does, and following it. Spec: protocol.md §7, cli.md §2.

use crate::args::{flag, is_set, number, output_options, repository};
use crate::output::{left, print, right, wanted_format};
use crate::plugins::Plugins;
use crate::remote;
use crate::repository::Repository;
use crate::store::parsed;
use crate::terminal::{CTIME, local_time};
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use keepwell_engine::plugin::{Document, Layout};
use keepwell_model::Upid;
use keepwell_transport::{Client, Query, query};
use serde::Deserialize;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Lines asked for at once.
const LINES: u64 = 500;
/// How long a line's time is, with the colon and blank behind it.
const TIME_BYTES: usize = 27;

fn upid_argument() -> Arg {
    Arg::new("upid")
        .value_name("UPID")
        .help("The task, as `task list --all` names it")
        .required(true)
        .value_parser(crate::args::parsed::<Upid>())
}

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("task")
        .about("List, follow and stop what runs on a server")
        .infer_subcommands(true)
        .subcommand_required(true)
        .subcommand(
            Command::new("list")
                .about("List running tasks")
                .arg(
                    number("limit", "N", "Most tasks to list [default: 50]")
                        .value_parser(value_parser!(u64).range(1..=1000)),
                )
                .arg(flag("all", "Also those that have ended"))
                .arg(repository())
                .args(output_options(plugins)),
        )
        .subcommand(
            Command::new("log")
                .about("Show the log of a task, and follow it while it runs")
                .arg(upid_argument())
                .arg(repository()),
        )
        .subcommand(
            Command::new("stop").about("Stop a task").arg(upid_argument()).arg(repository()),
        )
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    let Some((verb, matches)) = matches.subcommand() else { bail!("use list, log or stop") };
    let repository = Repository::find(matches.get_one("repository"))?;
    let server = repository.server()?;
    let store = remote::open(server, matches)?;
    if verb == "list" {
        let limit = matches.get_one::<u64>("limit").copied().unwrap_or(50);
        let query = Query::new()
            .with("limit", limit)
            .with("running", !is_set(matches, "all"))
            .with("start", 0)
            .with("store", store.name())
            .with("userfilter", server.user()?.as_str());
        return list(
            plugins,
            matches,
            store.client().get("/api2/json/nodes/localhost/tasks", &query)?,
        );
    }
    let upid = matches.get_one::<Upid>("upid").context("missing argument: upid")?.to_string();
    match verb {
        "log" => follow(store.client(), &upid, false),
        _ => {
            store.client().delete(&task_path(&upid, ""), &Query::new())?;
            Ok(())
        }
    }
}

fn list(plugins: &Plugins, matches: &ArgMatches, data: Value) -> Result<()> {
    let time = |item: &Value, name: &str| {
        item.get(name).and_then(Value::as_i64).map(|time| local_time(time, CTIME))
    };
    let row = |item: &Value| {
        let ended = item.get("endtime").is_some_and(|time| !time.is_null());
        let running = if ended { "unknown" } else { "running" };
        json!({
            "starttime": time(item, "starttime"),
            "endtime": time(item, "endtime"),
            "upid": item.get("upid"),
            "status": item.get("status").and_then(Value::as_str).unwrap_or(running),
        })
    };
    let rows: Vec<Value> = data.as_array().into_iter().flatten().map(row).collect();
    let columns = vec![right("starttime"), right("endtime"), left("upid"), left("status")];
    let display = Some(rows.into());
    print(plugins, matches, &Document { data, display, layout: Layout::Table(columns) })
}

/// Under which a task is found; its name is escaped.
fn task_path(upid: &str, rest: &str) -> String {
    format!("/api2/json/nodes/localhost/tasks/{}{rest}", query::escape_component(upid))
}

#[derive(Deserialize)]
struct Line {
    n: u64,
    t: String,
}

#[derive(Deserialize)]
struct Log {
    data: Vec<Line>,
    total: u64,
    active: bool,
}

/// Ctrl-C: the first asks, the second ends us.
fn interrupts() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 255, flag.clone());
        let _ = signal_hook::flag::register(signal, flag.clone());
    }
    flag
}

/// Prints a task's log until the task has ended; fails as the task failed. Ctrl-C stops the task
/// where `stops`, and else only the printing.
pub(crate) fn follow(client: &Client, upid: &str, stops: bool) -> Result<()> {
    let interrupted = interrupts();
    let mut out = std::io::stdout().lock();
    let mut next = 1;
    let mut told = false;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            if !told {
                tracing::info!("got shutdown request (SIGINT)");
                told = true;
            }
            if !stops {
                return Ok(());
            }
            client.delete(&task_path(upid, ""), &Query::new())?;
        }
        let query = Query::new().with("limit", LINES).with("start", next).with("test-status", true);
        let log: Log = parsed(client.get_whole(&task_path(upid, "/log"), &query)?)?;
        let count = log.data.len() as u64;
        for line in log.data {
            if line.n != next {
                bail!("got wrong line number in response data ({} != {next})", line.n);
            }
            next += 1;
            let text = line.t.as_str();
            let is_timed = text.get(TIME_BYTES - 2..TIME_BYTES) == Some(": ");
            let text = text.get(TIME_BYTES..).filter(|_| is_timed).unwrap_or(text);
            // Who reads may have seen enough; the task goes on.
            let _ = writeln!(out, "{text}");
        }
        if next > log.total {
            if !log.active {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        } else if count != LINES {
            bail!("got wrong number of lines from server ({count} != {LINES})");
        }
    }
    let status = client.get(&task_path(upid, "/status"), &Query::new())?;
    match status.get("exitstatus").and_then(Value::as_str) {
        Some("OK") => Ok(()),
        Some(status) if status.starts_with("WARNINGS") => Ok(()),
        Some(status) => bail!("task failed (status {status})"),
        None => bail!("task stopped with unknown status"),
    }
}

/// Follows a task that was just started; programs get its name only.
pub(crate) fn started(
    plugins: &Plugins,
    matches: &ArgMatches,
    client: &Client,
    upid: Value,
) -> Result<()> {
    if wanted_format(plugins, matches) != "text" {
        return print(plugins, matches, &crate::output::message(upid, ""));
    }
    let name: String = parsed(upid)?;
    follow(client, &name, true)
}
