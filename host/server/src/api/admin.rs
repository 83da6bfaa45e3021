//! `admin/datastore`: groups, snapshots, namespaces, and the tasks on them. Spec: protocol.md §3,
//! semantics.md §2 to §9.

use super::browse::{self, Opened};
use super::{
    BACKUP_ID, BACKUP_TIME, BACKUP_TYPE, Context, Endpoint, ID, NS, TYPE, USER_ID, endpoint, group,
    namespace, snapshot,
};
use crate::access::{Privileges, is_token, owns, user_of};
use crate::error::{ApiError, ApiResult};
use crate::params::{Kind, Param, at_least, is, optional, required};
use crate::server::{Server, acl_path};
use crate::session::Reply;
use crate::stores::{self, Purpose};
use crate::tasks::Task;
use hyper::Method;
use keepwell_engine::list;
use keepwell_engine::plugin::OptionValue;
use keepwell_engine::prune::{self, PruneItem, Time};
use keepwell_engine::restore::chain;
use keepwell_engine::snapshot::{UnverifiedManifest, change_unprotected};
use keepwell_engine::verify::{Seen, SkipVerified, Verification};
use keepwell_model::{
    AuthId, BackupId, BackupType, Blob, GroupId, Namespace, SnapshotId, is_safe_name,
};
use keepwell_store::{
    Collection, DirStore, GarbageStatus, Removal, SessionStore, SnapshotReader, SnapshotStore,
    StoreError,
};
use serde_json::{Value, json};
use std::sync::Arc;

const SNAPSHOT: &[Param] = &[NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME];
const GROUP: &[Param] = &[NS, BACKUP_TYPE, BACKUP_ID];
const DEPTH: Param =
    optional("max-depth", Kind::Integer { minimum: 0, maximum: Namespace::DEPTH_MAX as i64 });

macro_rules! keeps {
    ($($more:expr),*) => {
        &[
            NS,
            optional("keep-last", at_least(1)),
            optional("keep-hourly", at_least(1)),
            optional("keep-daily", at_least(1)),
            optional("keep-weekly", at_least(1)),
            optional("keep-monthly", at_least(1)),
            optional("keep-yearly", at_least(1)),
            optional("dry-run", Kind::Bool),
            DEPTH,
            $($more),*
        ]
    };
}

pub(crate) const RULES: [&str; 6] =
    ["keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly"];

macro_rules! store {
    ($method:ident $what:literal $params:expr, $run:ident) => {
        endpoint(Method::$method, concat!("admin/datastore/{}/", $what), $params, $run)
    };
}

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint(Method::GET, "admin/datastore", &[], stores),
    store!(GET "status" &[optional("verbose", Kind::Bool)], status),
    store!(GET "groups" &[NS], groups),
    store!(DELETE "groups" &[
        NS, BACKUP_TYPE, BACKUP_ID, optional("error-on-protected", Kind::Bool)
    ], delete_group),
    store!(GET "snapshots" &[
        NS, optional("backup-type", TYPE), optional("backup-id", ID),
    ], snapshots),
    store!(DELETE "snapshots" SNAPSHOT, delete_snapshot),
    store!(GET "files" SNAPSHOT, files),
    store!(GET "download" &[
        NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, required("file-name", Kind::Form(is_safe_name)),
    ], download),
    store!(GET "download-decoded" &[
        NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, required("file-name", Kind::Form(is_safe_name)),
    ], download_decoded),
    store!(GET "catalog" &[
        NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, required("filepath", Kind::Text),
    ], catalog),
    store!(GET "pxar-file-download" &[
        NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, required("filepath", Kind::Text),
        optional("tar", Kind::Bool),
    ], file_download),
    Endpoint {
        method: Method::POST,
        path: "admin/datastore/{}/upload-backup-log",
        params: SNAPSHOT,
        takes_bytes: Some(admit_log),
        run: upload_log,
    },
    store!(GET "notes" SNAPSHOT, notes),
    store!(PUT "notes" &[
        NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, required("notes", Kind::Text),
    ], set_notes),
    store!(GET "group-notes" GROUP, group_notes),
    store!(PUT "group-notes" &[
        NS, BACKUP_TYPE, BACKUP_ID, required("notes", Kind::Text),
    ], set_group_notes),
    store!(GET "protected" SNAPSHOT, protected),
    store!(PUT "protected" &[
        NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, required("protected", Kind::Bool),
    ], set_protected),
    store!(POST "change-owner" &[
        NS, BACKUP_TYPE, BACKUP_ID, required("new-owner", USER_ID),
    ], change_owner),
    store!(GET "namespace" &[optional("parent", Kind::Form(is::<Namespace>)), DEPTH], namespaces),
    store!(POST "namespace" &[
        required("name", Kind::Form(is_safe_name)),
        optional("parent", Kind::Form(is::<Namespace>)),
    ], create_namespace),
    store!(DELETE "namespace" &[
        required("ns", Kind::Form(is::<Namespace>)),
        optional("delete-groups", Kind::Bool),
        optional("error-on-protected", Kind::Bool),
    ], delete_namespace),
    store!(POST "prune" keeps![
        required("backup-type", TYPE), required("backup-id", ID), optional("use-task", Kind::Bool)
    ], prune_group),
    store!(POST "prune-datastore" keeps![], prune_store),
    store!(GET "gc" &[], gc_status),
    store!(POST "gc" &[], collect_garbage),
    store!(POST "verify" &[
        NS,
        optional("backup-type", TYPE),
        optional("backup-id", ID),
        optional("backup-time", at_least(1)),
        optional("ignore-verified", Kind::Bool),
        optional("outdated-after", at_least(0)),
        DEPTH,
    ], verify),
    store!(GET "active-operations" &[], active),
];

const AUDIT_OR_OWN: (Privileges, Privileges) = (Privileges::AUDIT, Privileges::BACKUP);
const MODIFY_OR_OWN: (Privileges, Privileges) = (Privileges::MODIFY, Privileges::PRUNE);
const NOTES_OR_OWN: (Privileges, Privileges) = (Privileges::MODIFY, Privileges::BACKUP);
const READ_OR_OWN: (Privileges, Privileges) = (Privileges::READ, Privileges::BACKUP);

fn open(context: &Context, purpose: Purpose) -> ApiResult<DirStore> {
    context.server.store(context.store_name(), purpose)
}

/// Opens the datastore for who may do it for all groups, or for his own and this is one. Rights
/// come first: others do not learn which datastores there are.
fn open_group(
    context: &Context,
    purpose: Purpose,
    namespace: &Namespace,
    group: &GroupId,
    (all, own): (Privileges, Privileges),
) -> ApiResult<DirStore> {
    let all = context.all_or_own(namespace, all, own)?;
    let store = open(context, purpose)?;
    if !all {
        context.require_owner(namespace, group, &store)?;
    }
    Ok(store)
}

fn to_value<T: serde::Serialize>(value: &T) -> ApiResult<Value> {
    serde_json::to_value(value).map_err(|_| ApiError::internal())
}

fn stores(context: &Context) -> ApiResult<Reply> {
    let access = context.server.access();
    let wanted = Privileges::AUDIT.and(Privileges::BACKUP);
    let sees = |name: &str| {
        access.has_any_below(&context.caller.id, &format!("/datastore/{name}"), wanted)
    };
    let all = context.server.datastores();
    let list: Vec<Value> = all
        .list
        .iter()
        .filter(|store| sees(&store.name))
        .map(|store| {
            let mut item = json!({ "store": store.name, "comment": store.comment });
            if let Some(maintenance) = &store.maintenance {
                item["maintenance"] = json!(maintenance);
            }
            item
        })
        .collect();
    Ok(Reply::Data(list.into()))
}

fn status(context: &Context) -> ApiResult<Reply> {
    let root = Namespace::default();
    let access = context.server.access();
    let path = acl_path(context.store_name(), &root);
    let here = access.privileges(&context.caller.id, &path);
    let exact = Privileges::AUDIT.and(Privileges::BACKUP);
    let some = exact.and(Privileges::MODIFY).and(Privileges::READ);
    let is_exact = here.has_any(exact);
    if !is_exact && !access.has_any_below(&context.caller.id, &path, some) {
        return Err(ApiError::forbidden());
    }
    let store = open(context, Purpose::Read)?;
    let mut data = json!({ "total": 0, "used": 0, "avail": 0 });
    if is_exact {
        let capacity = store.capacity()?;
        data["total"] = capacity.total.into();
        data["used"] = capacity.used.into();
        data["avail"] = capacity.available.into();
    }
    if context.params.flag("verbose") == Some(true) {
        data["counts"] = counts(context, &store)?;
        if is_exact {
            data["gc-status"] = garbage_status(&store)?;
        }
    }
    Ok(Reply::Data(data))
}

/// Groups and snapshots of each type that the caller sees.
fn counts(context: &Context, store: &DirStore) -> ApiResult<Value> {
    let mut counts = json!({ "ct": null, "host": null, "vm": null, "other": null });
    for namespace in store.namespaces(&Namespace::default(), Namespace::DEPTH_MAX)? {
        let Ok(all) = context.all_or_own(&namespace, Privileges::AUDIT, Privileges::BACKUP) else {
            continue;
        };
        for item in list::groups(store, &namespace)? {
            if all || owns(&context.caller.id, &item.owner) {
                let count = &mut counts[item.backup_type.as_str()];
                let number = |name: &str| count.get(name).and_then(Value::as_u64).unwrap_or(0);
                let (groups, snapshots) = (number("groups") + 1, number("snapshots"));
                let snapshots = snapshots + item.backup_count;
                *count = json!({ "groups": groups, "snapshots": snapshots });
            }
        }
    }
    Ok(counts)
}

fn groups(context: &Context) -> ApiResult<Reply> {
    let namespace = namespace(&context.params)?;
    let (all, own) = AUDIT_OR_OWN;
    let all = context.all_or_own(&namespace, all, own)?;
    let mut items = list::groups(&open(context, Purpose::Read)?, &namespace)?;
    items.retain(|item| all || owns(&context.caller.id, &item.owner));
    Ok(Reply::Data(to_value(&items)?))
}

fn delete_group(context: &Context) -> ApiResult<Reply> {
    let (namespace, group) = (namespace(&context.params)?, group(&context.params)?);
    let store = open_group(context, Purpose::Write, &namespace, &group, MODIFY_OR_OWN)?;
    let deleted = store.delete_group(&namespace, &group);
    match deleted.map_err(|error| stores::in_use(error, &store, &namespace, &group))? {
        true => Ok(().into()),
        false => Err(ApiError::bad("group only partially deleted due to protected snapshots")),
    }
}

fn snapshots(context: &Context) -> ApiResult<Reply> {
    let params = &context.params;
    let namespace = namespace(params)?;
    let (all, own) = AUDIT_OR_OWN;
    let all = context.all_or_own(&namespace, all, own)?;
    let kind: Option<BackupType> = params.parsed("backup-type")?;
    let id: Option<BackupId> = params.parsed("backup-id")?;
    let store = open(context, Purpose::Read)?;
    let group = kind.zip(id.clone()).map(|(kind, id)| GroupId { kind, id });
    let mut items = list::snapshots(&store, &namespace, group.as_ref())?;
    items.retain(|item| {
        kind.is_none_or(|kind| item.backup_type == kind)
            && id.as_ref().is_none_or(|id| item.backup_id == id.as_str())
            && (all || owns(&context.caller.id, &item.owner))
    });
    Ok(Reply::Data(to_value(&items)?))
}

fn delete_snapshot(context: &Context) -> ApiResult<Reply> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let store = open_group(context, Purpose::Write, &namespace, &snapshot.group, MODIFY_OR_OWN)?;
    let forgotten = store.forget(&namespace, &snapshot);
    forgotten.map_err(|error| stores::in_use(error, &store, &namespace, &snapshot.group))?;
    Ok(().into())
}

fn files(context: &Context) -> ApiResult<Reply> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let rights = (Privileges::AUDIT.and(Privileges::READ), Privileges::BACKUP);
    let store = open_group(context, Purpose::Read, &namespace, &snapshot.group, rights)?;
    Ok(Reply::Data(to_value(&list::files(&store, &namespace, &snapshot)?)?))
}

/// A snapshot whose content the caller may see.
fn readable(context: &Context) -> ApiResult<Arc<dyn SnapshotReader>> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let store = open_group(context, Purpose::Read, &namespace, &snapshot.group, READ_OR_OWN)?;
    Ok(SessionStore::open(&store, &namespace, &snapshot)?)
}

fn opened(context: &Context) -> ApiResult<Opened> {
    Opened::new(readable(context)?)
}

/// The bytes of a file as they are stored.
fn download(context: &Context) -> ApiResult<Reply> {
    let given = context.params.text("file-name").unwrap_or_default();
    Ok(Reply::Bytes(stores::read_file(&*readable(context)?, given)?.1))
}

fn download_decoded(context: &Context) -> ApiResult<Reply> {
    let given = context.params.text("file-name").unwrap_or_default();
    let name = stores::parse_file_name(given)?;
    browse::decoded(&opened(context)?, &name)
}

fn catalog(context: &Context) -> ApiResult<Reply> {
    browse::catalog(context, &opened(context)?)
}

fn file_download(context: &Context) -> ApiResult<Reply> {
    browse::file_download(context, &opened(context)?)
}

/// Only the owner adds a log, whoever else may do everything.
fn open_for_log(context: &Context) -> ApiResult<(DirStore, Namespace, SnapshotId)> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    context.require(&namespace, Privileges::BACKUP)?;
    let store = open(context, Purpose::Write)?;
    context.require_owner(&namespace, &snapshot.group, &store)?;
    Ok((store, namespace, snapshot))
}

fn admit_log(context: &Context) -> ApiResult<()> {
    open_for_log(context).map(|_| ())
}

fn upload_log(context: &Context) -> ApiResult<Reply> {
    let (store, namespace, snapshot) = open_for_log(context)?;
    let blob =
        Blob::parse(context.body.clone()).map_err(|error| ApiError::bad(error.to_string()))?;
    store.add_log(&namespace, &snapshot, &blob)?;
    Ok(().into())
}

fn notes(context: &Context) -> ApiResult<Reply> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let store = open_group(context, Purpose::Read, &namespace, &snapshot.group, AUDIT_OR_OWN)?;
    let reader = SessionStore::open(&store, &namespace, &snapshot)?;
    let manifest = UnverifiedManifest::read(&*reader)?.unverified();
    Ok(Reply::Data(manifest.notes().into()))
}

fn set_notes(context: &Context) -> ApiResult<Reply> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let store = open_group(context, Purpose::Write, &namespace, &snapshot.group, NOTES_OR_OWN)?;
    let notes = context.params.text("notes").unwrap_or_default();
    change_unprotected(&store, &namespace, &snapshot, &|unprotected| {
        unprotected.insert("notes".into(), notes.into());
    })?;
    Ok(().into())
}

fn group_notes(context: &Context) -> ApiResult<Reply> {
    let (namespace, group) = (namespace(&context.params)?, group(&context.params)?);
    let store = open_group(context, Purpose::Read, &namespace, &group, AUDIT_OR_OWN)?;
    Ok(Reply::Data(store.group_notes(&namespace, &group)?.into()))
}

fn set_group_notes(context: &Context) -> ApiResult<Reply> {
    let (namespace, group) = (namespace(&context.params)?, group(&context.params)?);
    let store = open_group(context, Purpose::Write, &namespace, &group, NOTES_OR_OWN)?;
    let notes = context.params.text("notes").unwrap_or_default();
    store.set_group_notes(&namespace, &group, notes)?;
    Ok(().into())
}

fn protected(context: &Context) -> ApiResult<Reply> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let store = open_group(context, Purpose::Read, &namespace, &snapshot.group, AUDIT_OR_OWN)?;
    Ok(Reply::Data(store.protected(&namespace, &snapshot)?.into()))
}

fn set_protected(context: &Context) -> ApiResult<Reply> {
    let (namespace, snapshot) = (namespace(&context.params)?, snapshot(&context.params)?);
    let store = open_group(context, Purpose::Write, &namespace, &snapshot.group, NOTES_OR_OWN)?;
    let protected = context.params.flag("protected").unwrap_or(false);
    store.set_protected(&namespace, &snapshot, protected)?;
    Ok(().into())
}

fn change_owner(context: &Context) -> ApiResult<Reply> {
    let (namespace, group) = (namespace(&context.params)?, group(&context.params)?);
    let new: AuthId = context.params.needed("new-owner")?;
    let caller = &context.caller.id;
    let all = context.all_or_own(&namespace, Privileges::MODIFY, Privileges::BACKUP)?;
    let store = open(context, Purpose::Write)?;
    if !all {
        let missing = || ApiError::bad(format!("backup group {group} does not exist"));
        let old: AuthId = store
            .owner_of(&namespace, &group)?
            .and_then(|id| id.parse().ok())
            .ok_or_else(missing)?;
        let same_user = user_of(&old) == user_of(caller) && user_of(&new) == user_of(caller);
        // A user gives to and takes from his tokens; a token does nothing of that.
        if is_token(caller) || !same_user {
            let text = format!(
                "{caller} does not have permission to change owner of backup group '{group}' to {new}"
            );
            return Err(ApiError::unauthorized(text));
        }
    }
    if !context.server.access().is_active(&new, context.server.now()) {
        let what = if is_token(&new) { "API token" } else { "user" };
        return Err(ApiError::bad(format!("{what} '{new}' is inactive or non-existent")));
    }
    store.change_owner(&namespace, &group, &new)?;
    Ok(().into())
}

fn depth(context: &Context) -> usize {
    let depth = context.params.integer("max-depth").and_then(|depth| usize::try_from(depth).ok());
    depth.unwrap_or(Namespace::DEPTH_MAX).min(Namespace::DEPTH_MAX)
}

fn namespaces(context: &Context) -> ApiResult<Reply> {
    let parent: Namespace = context.params.parsed("parent")?.unwrap_or_default();
    let wanted = Privileges::MODIFY.and(Privileges::AUDIT).and(Privileges::BACKUP);
    let name = context.store_name();
    let path = acl_path(name, &parent);
    if !context.server.access().has_any_below(&context.caller.id, &path, wanted) {
        return Err(super::missing(name, &parent, wanted));
    }
    let store = open(context, Purpose::Read)?;
    let sees =
        |ns: &Namespace| context.server.privileges(&context.caller.id, name, ns).has_any(wanted);
    let found = store.namespaces(&parent, depth(context))?;
    let list: Vec<Value> =
        found.iter().filter(|ns| sees(ns)).map(|ns| json!({ "ns": ns.to_string() })).collect();
    if list.is_empty() && !sees(&parent) {
        return Err(super::missing(name, &parent, wanted));
    }
    Ok(Reply::Data(list.into()))
}

fn create_namespace(context: &Context) -> ApiResult<Reply> {
    let parent: Namespace = context.params.parsed("parent")?.unwrap_or_default();
    context.require(&parent, Privileges::MODIFY)?;
    let name = context.params.text("name").unwrap_or_default();
    let new = parent.child(name).map_err(|error| ApiError::bad(error.to_string()))?;
    open(context, Purpose::Write)?.create_namespace(&new)?;
    Ok(Reply::Data(new.to_string().into()))
}

fn delete_namespace(context: &Context) -> ApiResult<Reply> {
    let namespace = namespace(&context.params)?;
    let parent = namespace.parent();
    let parent = parent.ok_or_else(|| ApiError::bad("Cannot delete root namespace!"))?;
    context.require(&parent, Privileges::MODIFY)?;
    let with_groups = context.params.flag("delete-groups") == Some(true);
    let store = open(context, Purpose::Write)?;
    match store.delete_namespace(&namespace, with_groups)? {
        Removal::Done => Ok(().into()),
        Removal::KeptProtected => {
            Err(ApiError::bad("group only partially deleted due to protected snapshots"))
        }
        Removal::KeptGroups => Err(ApiError::bad(
            "only partially deleted due to existing groups but `delete-groups` not true ",
        )),
    }
}

fn rules(context: &Context) -> Vec<OptionValue> {
    let given = RULES.iter().filter_map(|rule| Some((*rule, context.params.integer(rule)?)));
    given
        .map(|(name, count)| OptionValue {
            name: name.into(),
            value: count.to_string().into_bytes(),
        })
        .collect()
}

/// `--keep-last 3 --keep-daily 7`
fn shown(rules: &[OptionValue]) -> String {
    let rules = rules
        .iter()
        .map(|rule| format!("--{} {}", rule.name, String::from_utf8_lossy(&rule.value)));
    rules.collect::<Vec<_>>().join(" ")
}

/// What would become of a group's snapshots.
fn plan(
    server: &crate::server::Server,
    store: &DirStore,
    namespace: &Namespace,
    group: &GroupId,
    rules: Vec<OptionValue>,
) -> ApiResult<Vec<PruneItem>> {
    let mut policy = (server.environment.policy)().map_err(ApiError::bad)?;
    let offset = server.environment.utc_offset;
    let time = Time { now: server.now(), utc_offset: &offset };
    Ok(prune::plan(store, namespace, group, &mut *policy, rules, &time)?)
}

/// Removes what the plan does not keep, until it is asked to stop; what can't be removed is a
/// warning.
fn apply(
    store: &DirStore,
    namespace: &Namespace,
    items: &[PruneItem],
    task: &Task,
) -> ApiResult<()> {
    for item in items {
        task.log(&format!("{} {}", shown_item(item), mark(item)));
    }
    let cancel = task.cancel();
    for item in items {
        if cancel.is_cancelled() {
            return Err(interrupted());
        }
        prune::apply(store, namespace, std::slice::from_ref(item), &mut |snapshot, error| {
            task.warn(&format!("failed to remove dir \"{snapshot}\": {}", chain(error)));
        });
    }
    Ok(())
}

fn interrupted() -> ApiError {
    ApiError::bad("interrupted: old snapshots may remain")
}

fn mark(item: &PruneItem) -> &'static str {
    match (item.protected, item.keep) {
        (true, _) => "protected",
        (false, true) => "keep",
        (false, false) => "remove",
    }
}

fn shown_item(item: &PruneItem) -> String {
    item.snapshot().map_or_else(|error| error.to_string(), |snapshot| snapshot.to_string())
}

fn place(namespace: &Namespace) -> String {
    match namespace.is_root() {
        true => "root namespace".into(),
        false => format!("namespace '{namespace}'"),
    }
}

fn prune_group(context: &Context) -> ApiResult<Reply> {
    let (namespace, group) = (namespace(&context.params)?, group(&context.params)?);
    let dry_run = context.params.flag("dry-run") == Some(true);
    let purpose = if dry_run { Purpose::Read } else { Purpose::Write };
    let store = open_group(context, purpose, &namespace, &group, MODIFY_OR_OWN)?;
    let rules = rules(context);
    let server = &context.server;
    let items = plan(server, &store, &namespace, &group, rules.clone())?;
    if dry_run {
        let mut data = to_value(&items)?;
        for item in data.as_array_mut().into_iter().flatten().filter(|_| !namespace.is_root()) {
            item["ns"] = namespace.to_string().into();
        }
        return Ok(Reply::Data(data));
    }
    let name = context.store_name().to_owned();
    let id = format!("{name}:{namespace}:{group}");
    let data = to_value(&items)?;
    let options = shown(&rules);
    let work = move |task: &Task| {
        let ns = if namespace.is_root() { String::new() } else { format!("--ns {namespace} ") };
        match options.is_empty() {
            true => task.log("No prune selection - keeping all files."),
            false => task.log(&format!("retention options: {ns}{options}")),
        }
        let place = place(&namespace);
        task.log(&format!("Starting prune on datastore '{name}', {place} group \"{group}\""));
        apply(&store, &namespace, &items, task)
    };
    if context.params.flag("use-task") == Some(true) {
        let work = move |_: &Server, task: &Task| work(task);
        let upid = server.spawn_task("prune", Some(id), &context.caller.id, work)?;
        return Ok(Reply::Data(upid.into()));
    }
    let task = server.start_task("prune", Some(id), &context.caller.id)?;
    let outcome = work(&task);
    let shown = outcome.as_ref().copied().map_err(|error| error.message.clone());
    server.tasks.end(&task, &shown, server.now());
    outcome.map(|()| Reply::Data(data))
}

fn prune_store(context: &Context) -> ApiResult<Reply> {
    let namespace = namespace(&context.params)?;
    let (all, own) = MODIFY_OR_OWN;
    context.all_or_own(&namespace, all, own)?;
    let prune = StorePrune {
        name: context.store_name().to_owned(),
        namespace,
        depth: depth(context),
        rules: rules(context),
        dry_run: context.params.flag("dry-run") == Some(true),
    };
    let upid = start_prune(&context.server, "prune", &context.caller.id, prune)?;
    Ok(Reply::Data(upid.into()))
}

/// Which groups of a datastore to prune, and how.
pub(crate) struct StorePrune {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) depth: usize,
    pub(crate) rules: Vec<OptionValue>,
    pub(crate) dry_run: bool,
}

/// Starts to prune all groups that somebody may; returns the task.
pub(crate) fn start_prune(
    server: &Arc<Server>,
    kind: &str,
    user: &AuthId,
    prune: StorePrune,
) -> ApiResult<String> {
    let store = server.store(&prune.name, Purpose::Write)?;
    let (caller, id) = (user.clone(), Some(prune.name.clone()));
    server.spawn_task(kind, id, user, move |server, task| {
        let StorePrune { name, namespace, depth, rules, dry_run } = prune;
        let place = place(&namespace);
        let down = match depth {
            0 => "non-recursive".into(),
            Namespace::DEPTH_MAX => "down to full depth".into(),
            _ => format!("down to depth {depth}"),
        };
        task.log(&format!("Starting datastore prune on datastore '{name}', {place}, {down}"));
        match rules.is_empty() {
            true => task.log("No prune selection - keeping all files."),
            false => task.log(&format!("retention options: {}", shown(&rules))),
        }
        if dry_run {
            task.log("(dry test run)");
        }
        for ns in store.namespaces(&namespace, depth)? {
            let privileges = server.privileges(&caller, &name, &ns);
            for info in store.groups(&ns)? {
                let may = privileges.has_any(Privileges::MODIFY)
                    || privileges.has_any(Privileges::PRUNE) && owns(&caller, &info.owner);
                if !may {
                    continue;
                }
                if task.cancel().is_cancelled() {
                    return Err(interrupted());
                }
                task.log(&format!("Pruning group {ns}:\"{}\"", info.group));
                let items = plan(server, &store, &ns, &info.group, rules.clone())?;
                match dry_run {
                    true => items.iter().for_each(|item| {
                        task.log(&format!("would {} {}", mark(item), shown_item(item)));
                    }),
                    false => apply(&store, &ns, &items, task)?,
                }
            }
        }
        Ok(())
    })
}

/// What the last collection found; zeros before the first.
fn garbage_status(store: &DirStore) -> ApiResult<Value> {
    if let Some(status) = store.garbage_status()?.filter(Value::is_object) {
        return Ok(status);
    }
    let mut status = to_value(&GarbageStatus::default())?;
    if let Some(counters) = status.as_object_mut() {
        counters.remove("upid");
    }
    Ok(status)
}

fn gc_status(context: &Context) -> ApiResult<Reply> {
    context.require(&Namespace::default(), Privileges::AUDIT)?;
    let mut data = garbage_status(&open(context, Purpose::Read)?)?;
    let upid = data.get("upid").and_then(Value::as_str).unwrap_or_default();
    if let Some(item) = context.server.tasks.ended_item(upid)?
        && let Some((ended, state)) = item.endtime.zip(item.status)
    {
        data["duration"] = (ended - item.starttime).into();
        data["last-run-endtime"] = ended.into();
        data["last-run-state"] = state.into();
    }
    data["store"] = context.store_name().into();
    Ok(Reply::Data(data))
}

fn collect_garbage(context: &Context) -> ApiResult<Reply> {
    context.require(&Namespace::default(), Privileges::MODIFY)?;
    let upid = start_garbage(&context.server, context.store_name(), &context.caller.id)?;
    Ok(Reply::Data(upid.into()))
}

/// Starts a collection of garbage; returns the task.
pub(crate) fn start_garbage(server: &Arc<Server>, name: &str, user: &AuthId) -> ApiResult<String> {
    let store = server.store(name, Purpose::Write)?;
    let (name, id) = (name.to_owned(), Some(name.to_owned()));
    server.spawn_task("garbage_collection", id, user, move |server, task| {
        task.log(&format!("starting garbage collection on store {name}"));
        let cancel = task.cancel();
        let collection = Collection {
            now: server.now(),
            upid: Some(task.upid.to_string()),
            say: &mut |line: &str| {
                if line.starts_with("warning: ") {
                    task.count_warning();
                }
                task.log(line);
            },
            is_over: &|| cancel.is_cancelled(),
        };
        match store.collect_garbage(collection) {
            Ok(_) => Ok(()),
            Err(StoreError::Locked { .. }) => {
                Err(ApiError::bad("Start GC failed - (already running/locked)"))
            }
            Err(other) => Err(other.into()),
        }
    })
}

fn verify(context: &Context) -> ApiResult<Reply> {
    let params = &context.params;
    let namespace = namespace(params)?;
    let (all, own) = (Privileges::VERIFY, Privileges::BACKUP);
    let all = context.all_or_own(&namespace, all, own)?;
    let store = open(context, Purpose::Write)?;
    let name = context.store_name().to_owned();
    let kind: Option<BackupType> = params.parsed("backup-type")?;
    let id: Option<BackupId> = params.parsed("backup-id")?;
    let group = match (kind, id) {
        (Some(kind), Some(id)) => Some(GroupId { kind, id }),
        (None, None) => None,
        _ => {
            let text = "parameters do not specify a backup group: backup-type and backup-id belong \
                        together";
            return Err(ApiError::bad(text));
        }
    };
    let one = match (&group, params.integer("backup-time")) {
        (Some(_), Some(_)) => Some(snapshot(params)?),
        (None, Some(_)) => return Err(ApiError::bad("parameters do not specify a snapshot")),
        _ => None,
    };
    if let Some(group) = group.as_ref().filter(|_| !all) {
        context.require_owner(&namespace, group, &store)?;
    }
    let verify = StoreVerify {
        name,
        namespace,
        depth: depth(context),
        group,
        snapshot: one,
        ignore_verified: params.flag("ignore-verified") != Some(false),
        outdated_after: params.integer("outdated-after"),
    };
    let upid = start_verify(&context.server, None, &context.caller.id, verify)?;
    Ok(Reply::Data(upid.into()))
}

/// What of a datastore to verify.
pub(crate) struct StoreVerify {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) depth: usize,
    pub(crate) group: Option<GroupId>,
    pub(crate) snapshot: Option<SnapshotId>,
    pub(crate) ignore_verified: bool,
    pub(crate) outdated_after: Option<i64>,
}

/// Starts a verification of what somebody may verify; returns the task.
pub(crate) fn start_verify(
    server: &Arc<Server>,
    kind: Option<&str>,
    user: &AuthId,
    verify: StoreVerify,
) -> ApiResult<String> {
    let StoreVerify { name, namespace, depth, group, snapshot, .. } = verify;
    let caller = user.clone();
    let store = server.store(&name, Purpose::Write)?;
    let (worker, id) = match (&snapshot, &group) {
        (Some(one), _) => {
            let time = one.time.unix();
            ("verify_snapshot", format!("{name}:{}/{time:08X}", one.group))
        }
        (None, Some(group)) => ("verify_group", format!("{name}:{group}")),
        (None, None) => ("verify", name.clone()),
    };
    let skip = SkipVerified {
        now: server.now(),
        none: !verify.ignore_verified,
        outdated_after: verify.outdated_after,
    };
    server.spawn_task(kind.unwrap_or(worker), Some(id), user, move |server, task| {
        let mut verification = Verification {
            store: &store,
            label: label(&name, &namespace),
            upid: task.upid.clone(),
            skip,
            cancel: task.cancel(),
            say: &mut |line| task.log(line),
            key: None,
            seen: Seen::default(),
        };
        let failed = match (&snapshot, &group) {
            (Some(one), _) => match verification.snapshot(&namespace, one)? {
                true => Vec::new(),
                false => vec![shown_snapshot(&namespace, one)],
            },
            (None, Some(group)) => verification.group(&namespace, group)?,
            (None, None) => {
                let mut failed = Vec::new();
                for ns in store.namespaces(&namespace, depth)? {
                    let privileges = server.privileges(&caller, &name, &ns);
                    let all = privileges.has_any(Privileges::VERIFY);
                    if !all && !privileges.has_any(Privileges::BACKUP) {
                        continue;
                    }
                    verification.label = label(&name, &ns);
                    let wants = |owner: &str| all || owns(&caller, owner);
                    failed.extend(verification.namespaces(std::slice::from_ref(&ns), &wants)?);
                }
                failed
            }
        };
        if failed.is_empty() {
            return Ok(());
        }
        task.log("Failed to verify the following snapshots/groups:");
        failed.iter().for_each(|name| task.log(&format!("\t{name}")));
        Err(ApiError::bad("verification failed - please check the log for details"))
    })
}

/// `store1`, or `store1:a/b`
fn label(store: &str, namespace: &Namespace) -> String {
    match namespace.is_root() {
        true => store.to_owned(),
        false => format!("{store}:{namespace}"),
    }
}

/// `ns/a/ns/b/host/x/…`
fn shown_snapshot(namespace: &Namespace, snapshot: &SnapshotId) -> String {
    let prefix: String = namespace.components().map(|name| format!("ns/{name}/")).collect();
    format!("{prefix}{snapshot}")
}

fn active(context: &Context) -> ApiResult<Reply> {
    context.require(&Namespace::default(), Privileges::AUDIT)?;
    let name = context.store_name();
    open(context, Purpose::Read)?;
    let running = context.server.tasks.list(true)?;
    let count = |readers: bool| {
        let of_store = running.iter().filter(|item| {
            let id = item.worker_id.as_deref().unwrap_or_default();
            id == name || id.starts_with(&format!("{name}:"))
        });
        of_store.filter(|item| (item.worker_type == "reader") == readers).count()
    };
    Ok(Reply::Data(json!({ "read": count(true), "write": count(false) })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Identity, Tasks};

    #[test]
    fn a_prune_that_is_stopped_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".chunks")).unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        let identity = Identity { node: "pbs".into(), pid: 1, process_start: 2 };
        let tasks = Tasks::open(dir.path(), identity, 9).unwrap();
        let task = tasks.start("prune", None, &"a@pbs".parse().unwrap(), 3).unwrap();
        let items = [PruneItem {
            backup_id: "x".into(),
            backup_time: 5,
            backup_type: BackupType::Host,
            keep: false,
            protected: false,
            reason: String::new(),
        }];
        let root = Namespace::default();
        // What can't be removed is a warning.
        apply(&store, &root, &items, &task).unwrap();
        tasks.stop(&task.upid);
        let error = apply(&store, &root, &items, &task).unwrap_err();
        assert_eq!(error.message, "interrupted: old snapshots may remain");
    }
}
