//! Tasks: what takes long, with a name and a log on disk. Spec: protocol.md §7.
//!
//! Under `tasks/`: a log for each task, named by its UPID; `active` lists those that run, so that a
//! start after a crash can tell how they ended; `archive` has a line for each that has ended.

use crate::error::{ApiError, ApiResult, Result, io};
use crate::files;
use chrono::{Local, SecondsFormat};
use keepwell_engine::Cancel;
use keepwell_model::{AuthId, Upid};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How this process is told from others in the names of tasks.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node: String,
    pub pid: u32,
    /// clock ticks between the start of the host and of the process
    pub process_start: u64,
}

/// A task that runs.
pub(crate) struct Task {
    pub(crate) upid: Upid,
    log: Mutex<File>,
    aborted: AtomicBool,
    abort: Notify,
    warnings: AtomicU64,
    cancel: Arc<AtomicBool>,
}

impl Task {
    /// Adds a line to the log.
    pub(crate) fn log(&self, text: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines() {
            // A full disk must not end the task.
            let _ = writeln!(log, "{}: {line}", timestamp());
        }
    }

    pub(crate) fn warn(&self, text: &str) {
        self.count_warning();
        self.log(&format!("WARN: {text}"));
    }

    /// For a warning that is logged in words of its own.
    pub(crate) fn count_warning(&self) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks it to stop.
    fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
        self.cancel.store(true, Ordering::Relaxed);
        self.abort.notify_waiters();
        self.abort.notify_one();
    }

    /// Returns when it is asked to stop.
    pub(crate) async fn aborted(&self) {
        while !self.aborted.load(Ordering::Relaxed) {
            self.abort.notified().await;
        }
    }

    /// For work that runs on a thread.
    pub(crate) fn cancel(&self) -> Cancel {
        Cancel::from_flag(self.cancel.clone())
    }
}

fn timestamp() -> String {
    Local::now().to_rfc3339_opts(SecondsFormat::Secs, false)
}

/// What a list says of a task.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TaskItem {
    pub(crate) upid: String,
    pub(crate) node: String,
    pub(crate) pid: u32,
    pub(crate) pstart: u64,
    pub(crate) starttime: i64,
    pub(crate) worker_type: String,
    pub(crate) worker_id: Option<String>,
    pub(crate) user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endtime: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
}

impl TaskItem {
    fn new(upid: &Upid, ended: Option<(i64, String)>) -> Self {
        let (endtime, status) = ended.unzip();
        Self {
            upid: upid.to_string(),
            // Whatever the host's name is: it is what requests name it by.
            node: "localhost".into(),
            pid: upid.pid,
            pstart: upid.process_start,
            starttime: upid.start,
            worker_type: upid.kind.clone(),
            worker_id: upid.id.clone(),
            user: upid.user.clone(),
            endtime,
            status,
        }
    }
}

pub(crate) struct Tasks {
    dir: PathBuf,
    identity: Identity,
    kept: usize,
    count: AtomicU64,
    running: Mutex<BTreeMap<String, Arc<Task>>>,
    /// one writer of the archive at a time
    archive: Mutex<()>,
}

impl Tasks {
    pub(crate) fn open(state: &Path, identity: Identity, kept: usize) -> Result<Self> {
        let dir = state.join("tasks");
        fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        let (count, running, archive) = (AtomicU64::new(0), Mutex::default(), Mutex::default());
        Ok(Self { dir, identity, kept, count, running, archive })
    }

    /// Tasks that ran when the server crashed have ended, nobody knows how. For the only server of
    /// this state, before it starts any.
    pub(crate) fn recover(&self, now: i64) -> Result<()> {
        let active = self.dir.join("active");
        let text = files::read(&active)?.unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            if let Ok(upid) = line.parse::<Upid>() {
                self.write_end(&upid, now, "unknown")?;
            }
        }
        files::write(&active, b"", files::PUBLIC)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Task>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that a restart would spoil: who reads connects again.
    pub(crate) fn count_working(&self) -> usize {
        self.running().values().filter(|task| task.upid.kind != "reader").count()
    }

    pub(crate) fn count_running(&self) -> usize {
        self.running().len()
    }

    fn log_path(&self, upid: &str) -> PathBuf {
        self.dir.join(format!("{upid}{LOG_EXTENSION}"))
    }

    fn write_active(&self, running: &BTreeMap<String, Arc<Task>>) -> Result<()> {
        let lines: String = running.keys().map(|upid| format!("{upid}\n")).collect();
        files::write(&self.dir.join("active"), lines.as_bytes(), files::PUBLIC)
    }

    pub(crate) fn start(
        &self,
        kind: &str,
        id: Option<String>,
        user: &AuthId,
        now: i64,
    ) -> Result<Arc<Task>> {
        let mut upid = Upid {
            node: self.identity.node.clone(),
            pid: self.identity.pid,
            process_start: self.identity.process_start,
            task: self.count.fetch_add(1, Ordering::Relaxed),
            start: now,
            kind: kind.to_owned(),
            id,
            user: user.to_string(),
        };
        fit(&mut upid);
        let name = upid.to_string();
        let path = self.log_path(&name);
        let mut options = OpenOptions::new();
        let log = options.append(true).create(true).open(&path).map_err(io("create", &path))?;
        let task = Arc::new(Task {
            upid,
            log: Mutex::new(log),
            aborted: AtomicBool::new(false),
            abort: Notify::new(),
            warnings: AtomicU64::new(0),
            cancel: Arc::default(),
        });
        let mut running = self.running();
        running.insert(name, task.clone());
        self.write_active(&running)?;
        Ok(task)
    }

    /// Ends a task: its last line, its place in the archive.
    pub(crate) fn end(&self, task: &Task, outcome: &Result<(), String>, now: i64) {
        let warnings = task.warnings.load(Ordering::Relaxed);
        let (line, status) = match outcome {
            Err(problem) => {
                let problem = problem.replace('\n', " ");
                (format!("TASK ERROR: {problem}"), problem)
            }
            Ok(()) if warnings > 0 => {
                (format!("TASK WARNINGS: {warnings}"), format!("WARNINGS: {warnings}"))
            }
            Ok(()) => ("TASK OK".into(), "OK".into()),
        };
        task.log(&line);
        if let Err(error) = self.write_end(&task.upid, now, &status) {
            tracing::error!("unable to note the end of {}: {error}", task.upid);
        }
        let mut running = self.running();
        running.remove(&task.upid.to_string());
        if let Err(error) = self.write_active(&running) {
            tracing::error!("unable to note the end of {}: {error}", task.upid);
        }
    }

    fn write_end(&self, upid: &Upid, now: i64, status: &str) -> Result<()> {
        let _one = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join("archive");
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(&path).map_err(io("open", &path))?;
        writeln!(file, "{upid} {now:08X} {status}").map_err(io("write", &path))?;
        drop(file);
        self.forget_old(&path)
    }

    /// Drops the oldest logs, once there are a tenth more than are to be kept.
    fn forget_old(&self, path: &Path) -> Result<()> {
        let text = files::read(path)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() <= self.kept + self.kept / 10 + 10 {
            return Ok(());
        }
        let (old, kept) = lines.split_at(lines.len() - self.kept);
        files::write(path, (kept.join("\n") + "\n").as_bytes(), files::PUBLIC)?;
        for upid in old.iter().filter_map(|line| line.split(' ').next()) {
            let _ = fs::remove_file(self.log_path(upid));
        }
        Ok(())
    }

    /// Running ones first, then the others; the newest of each first.
    pub(crate) fn list(&self, running_only: bool) -> Result<Vec<TaskItem>> {
        let mut items: Vec<TaskItem> =
            self.running().values().map(|task| TaskItem::new(&task.upid, None)).collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.starttime));
        if !running_only {
            let text = files::read(&self.dir.join("archive"))?.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            items.extend(text.lines().rev().filter_map(archived));
        }
        Ok(items)
    }

    /// How a task ended; none while it runs.
    pub(crate) fn ended(&self, upid: &Upid) -> ApiResult<Option<String>> {
        let name = upid.to_string();
        if self.running().contains_key(&name) {
            return Ok(None);
        }
        match self.ended_item(&name)? {
            Some(item) => Ok(Some(item.status.unwrap_or_default())),
            None => Err(ApiError::bad(format!("no such task '{name}'"))),
        }
    }

    /// What the list says of a task that has ended; none while it runs or where it is forgotten.
    pub(crate) fn ended_item(&self, upid: &str) -> Result<Option<TaskItem>> {
        let text = files::read(&self.dir.join("archive"))?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().rev().filter_map(archived).find(|item| item.upid == upid))
    }

    /// Lines from number `first`, counted from 1, at most `limit`, and how many there are.
    pub(crate) fn log(&self, upid: &Upid, first: u64, limit: u64) -> ApiResult<(Vec<String>, u64)> {
        let path = self.log_path(&upid.to_string());
        let file = File::open(&path).map_err(io("open", &path))?;
        let (mut lines, mut total) = (Vec::new(), 0);
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(io("read", &path))?;
            total += 1;
            if total >= first && (limit == 0 || (lines.len() as u64) < limit) {
                lines.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        Ok((lines, total))
    }

    /// Asks a task to stop; nothing happens where it has ended.
    pub(crate) fn stop(&self, upid: &Upid) {
        if let Some(task) = self.running().get(&upid.to_string()) {
            task.log("received abort request ...");
            task.abort();
        }
    }

    pub(crate) fn stop_all(&self) {
        for task in self.running().values() {
            task.abort();
        }
    }
}

const FILE_NAME_BYTES_MAX: usize = 255;
const LOG_EXTENSION: &str = ".log";

/// Cuts what the task works on, where its name would be too long for that of a file.
fn fit(upid: &mut Upid) {
    while upid.to_string().len() + LOG_EXTENSION.len() > FILE_NAME_BYTES_MAX
        && upid.id.as_mut().is_some_and(|id| id.pop().is_some())
    {}
}

/// A line of the archive.
fn archived(line: &str) -> Option<TaskItem> {
    let (upid, rest) = line.split_once(' ')?;
    let (time, status) = rest.split_once(' ')?;
    let time = i64::from_str_radix(time, 16).ok()?;
    Some(TaskItem::new(&upid.parse().ok()?, Some((time, status.to_owned()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(dir: &Path) -> Tasks {
        let identity = Identity { node: "pbs".into(), pid: 1000, process_start: 6699 };
        let tasks = Tasks::open(dir, identity, 20).unwrap();
        tasks.recover(0x65A1_B2C3).unwrap();
        tasks
    }

    #[test]
    fn a_task_is_listed_while_it_runs_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = tasks(dir.path());
        let user = "root@pam".parse().unwrap();
        let task = tasks.start("backup", Some("s1:host/a".into()), &user, 0x65A1_B2C4).unwrap();
        task.log("one\ntwo");
        assert_eq!(tasks.list(true).unwrap().len(), 1);
        assert_eq!(tasks.ended(&task.upid).unwrap(), None);
        tasks.stop(&task.upid);
        assert!(task.cancel().is_cancelled());
        tasks.end(&task, &Err("it was\nstopped".into()), 0x65A1_B2D0);
        assert!(tasks.list(true).unwrap().is_empty());
        let items = tasks.list(false).unwrap();
        let item = &items[0];
        assert_eq!(
            item.upid,
            r"UPID:pbs:000003E8:00001A2B:00000000:65A1B2C4:backup:s1\x3ahost-a:root@pam:"
        );
        assert_eq!(
            (item.endtime, item.status.as_deref()),
            (Some(0x65A1_B2D0), Some("it was stopped"))
        );
        let (lines, total) = tasks.log(&task.upid, 2, 1).unwrap();
        assert_eq!((lines.len(), total), (1, 4));
        assert!(lines[0].ends_with(": two"), "{lines:?}");
    }

    #[test]
    fn a_long_name_is_cut_for_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = tasks(dir.path());
        let user = format!("{}@pbs", "u".repeat(60)).parse().unwrap();
        let id = format!("store1:host/a{}", "-".repeat(200));
        let task = tasks.start("verify_snapshot", Some(id.clone()), &user, 1_700_000_000).unwrap();
        let kept = task.upid.id.clone().unwrap();
        assert!(id.starts_with(&kept) && kept.starts_with("store1:host/a-"), "{kept}");
        assert_eq!(task.upid.to_string().parse(), Ok(task.upid.clone()));
        tasks.end(&task, &Ok(()), 1_700_000_001);
        assert_eq!(tasks.ended(&task.upid).unwrap().as_deref(), Some("OK"));
        assert_eq!(tasks.log(&task.upid, 1, 0).unwrap().1, 1);
    }

    #[test]
    fn a_crash_ends_what_ran() {
        let dir = tempfile::tempdir().unwrap();
        let user = "root@pam".parse().unwrap();
        let task = tasks(dir.path()).start("gc", None, &user, 1_700_000_000).unwrap();
        let tasks = tasks(dir.path());
        assert_eq!(tasks.ended(&task.upid).unwrap().as_deref(), Some("unknown"));
    }

    #[test]
    fn old_logs_go() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = tasks(dir.path());
        let user = "root@pam".parse().unwrap();
        for _ in 0..50 {
            let task = tasks.start("gc", None, &user, 1_700_000_000).unwrap();
            tasks.end(&task, &Ok(()), 1_700_000_001);
        }
        let listed = tasks.list(false).unwrap().len();
        assert!((20..=32).contains(&listed), "{listed}");
        let logs = fs::read_dir(dir.path().join("tasks")).unwrap().count();
        assert!(logs <= 34, "{logs}");
    }
}
