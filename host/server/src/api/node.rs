//! `nodes/localhost`: tasks and their logs. Spec: protocol.md §7.

use super::{Context, Endpoint, endpoint};
use crate::access::{Privileges, owns};
use crate::error::{ApiError, ApiResult};
use crate::params::{Kind, at_least, optional};
use crate::session::Reply;
use crate::tasks::TaskItem;
use chrono::{DateTime, SecondsFormat};
use hyper::Method;
use keepwell_model::{Upid, is_safe_name};
use serde_json::{Value, json};

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint(
        Method::GET,
        "nodes/{}/tasks",
        &[
            optional("start", at_least(0)),
            optional("limit", at_least(0)),
            optional("running", Kind::Bool),
            optional("errors", Kind::Bool),
            optional("userfilter", Kind::Text),
            optional("store", Kind::Form(is_safe_name)),
            optional("since", at_least(0)),
            optional("until", at_least(0)),
            optional("typefilter", Kind::Text),
            optional("statusfilter", Kind::Texts),
        ],
        list,
    ),
    endpoint(Method::DELETE, "nodes/{}/tasks/{}", &[], stop),
    endpoint(Method::GET, "nodes/{}/tasks/{}/status", &[], status),
    endpoint(
        Method::GET,
        "nodes/{}/tasks/{}/log",
        &[
            optional("start", at_least(0)),
            optional("limit", at_least(0)),
            optional("test-status", Kind::Bool),
            optional("download", Kind::Bool),
        ],
        log,
    ),
];

const DEFAULT_LIMIT: i64 = 50;

fn has_system(context: &Context, wanted: Privileges) -> bool {
    let access = context.server.access();
    access.privileges(&context.caller.id, "/system/tasks").has_any(wanted)
}

fn is_own(context: &Context, user: &str) -> bool {
    owns(&context.caller.id, user)
}

/// The task named, if the caller may know of it.
fn task(context: &Context, wanted: Privileges) -> ApiResult<Upid> {
    let name = context.names.get(1).map_or("", String::as_str);
    let upid: Upid = name.parse().map_err(|_| {
        ApiError::bad(format!("parameter verification failed - 'upid': '{name}' names no task"))
    })?;
    match is_own(context, &upid.user) || has_system(context, wanted) {
        true => Ok(upid),
        false => Err(ApiError::forbidden()),
    }
}

fn list(context: &Context) -> ApiResult<Reply> {
    let params = &context.params;
    let all = has_system(context, Privileges::SYS_AUDIT);
    let running = params.flag("running") == Some(true);
    let errors = params.flag("errors") == Some(true);
    let statuses = params.texts("statusfilter");
    if let Some(other) = statuses.iter().find(|status| !STATUS_KINDS.contains(status)) {
        let problem = format!("value '{other}' is not defined in the enumeration.");
        return Err(ApiError::bad(format!(
            "parameter verification failed - 'statusfilter': {problem}"
        )));
    }
    let fits = |item: &TaskItem| {
        let id = item.worker_id.as_deref().unwrap_or_default();
        let of_store = |store: &str| id == store || id.starts_with(&format!("{store}:"));
        let status = item.status.as_deref();
        let failed = status.is_some_and(|status| matches!(kind_of(status), "error" | "unknown"));
        (all || is_own(context, &item.user))
            && params.text("userfilter").is_none_or(|user| item.user.contains(user))
            && params.text("store").is_none_or(of_store)
            && params.text("typefilter").is_none_or(|kind| item.worker_type.contains(kind))
            && params.integer("since").is_none_or(|since| item.starttime >= since)
            && params.integer("until").is_none_or(|until| item.starttime <= until)
            && (!errors || failed)
            && (statuses.is_empty()
                || status.is_some_and(|status| statuses.contains(&kind_of(status))))
    };
    let items: Vec<TaskItem> =
        context.server.tasks.list(running)?.into_iter().filter(fits).collect();
    let total = items.len();
    let number = |name: &str, default: i64| {
        usize::try_from(params.integer(name).unwrap_or(default)).unwrap_or(usize::MAX)
    };
    let limit = match number("limit", DEFAULT_LIMIT) {
        0 => usize::MAX,
        limit => limit,
    };
    let page: Vec<TaskItem> = items.into_iter().skip(number("start", 0)).take(limit).collect();
    Ok(Reply::Whole(json!({ "data": page, "total": total })))
}

const STATUS_KINDS: [&str; 4] = ["ok", "warning", "error", "unknown"];

/// How a task ended, in the words of `statusfilter`.
fn kind_of(status: &str) -> &'static str {
    match status {
        "OK" => "ok",
        "unknown" => "unknown",
        _ if status.starts_with("WARNINGS: ") => "warning",
        _ => "error",
    }
}

fn stop(context: &Context) -> ApiResult<Reply> {
    let upid = task(context, Privileges::SYS_MODIFY)?;
    context.server.tasks.stop(&upid);
    Ok(().into())
}

fn status(context: &Context) -> ApiResult<Reply> {
    let upid = task(context, Privileges::SYS_AUDIT)?;
    let ended = context.server.tasks.ended(&upid)?;
    let (user, token) = match upid.user.split_once('!') {
        Some((user, token)) => (user, Some(token)),
        None => (upid.user.as_str(), None),
    };
    let mut data = json!({
        "upid": upid.to_string(),
        "node": upid.node,
        "pid": upid.pid,
        "pstart": upid.process_start,
        "starttime": upid.start,
        "type": upid.kind,
        "id": upid.id,
        "user": user,
        "status": if ended.is_none() { "running" } else { "stopped" },
    });
    if let Some(token) = token {
        data["tokenid"] = token.into();
    }
    if let Some(ended) = ended {
        data["exitstatus"] = ended.into();
    }
    Ok(Reply::Data(data))
}

fn log(context: &Context) -> ApiResult<Reply> {
    let upid = task(context, Privileges::SYS_AUDIT)?;
    let params = &context.params;
    let number = |name: &str, default: u64| {
        params.integer(name).map_or(default, |number| number.unsigned_abs())
    };
    if params.flag("download") == Some(true) {
        let (lines, _) = context.server.tasks.log(&upid, 0, 0)?;
        let text = lines.iter().map(|line| format!("{line}\n")).collect();
        let start = DateTime::from_timestamp(upid.start, 0).unwrap_or_default();
        let start = start.to_rfc3339_opts(SecondsFormat::Secs, true);
        let name = format!("task-{}-{}-{start}.log", upid.node, upid.kind);
        return Ok(Reply::Text { name, text });
    }
    // Before the lines: what ends meanwhile is asked for once more.
    let is_active = context.server.tasks.ended(&upid)?.is_none();
    let first = number("start", 1).max(1);
    let (lines, total) = context.server.tasks.log(&upid, first, number("limit", 50))?;
    let lines: Vec<Value> =
        lines.iter().zip(first..).map(|(text, n)| json!({ "n": n, "t": text })).collect();
    let mut answer = json!({ "data": lines, "success": 1, "total": total });
    if params.flag("test-status") == Some(true) {
        answer["active"] = is_active.into();
    }
    Ok(Reply::Log(answer))
}
