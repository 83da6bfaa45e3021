//! The REST API: endpoints, their parameters and rights, and what they answer.
//! Spec: protocol.md §3, §7.

pub(crate) mod admin;
mod browse;
mod node;

use crate::access::{Privileges, is_auth_id, owns};
use crate::error::{ApiError, ApiResult};
use crate::params::{Kind, Param, Params, at_least, is, optional, required};
use crate::server::{Server, acl_path};
use crate::session::Reply;
use hyper::{Method, StatusCode};
use keepwell_model::{
    AuthId, BackupId, BackupTime, BackupType, GroupId, Namespace, SnapshotId, is_safe_name,
};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

/// Who asks.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) id: AuthId,
    pub(crate) address: IpAddr,
}

/// One request, as a handler sees it.
pub(crate) struct Context {
    pub(crate) server: Arc<Server>,
    pub(crate) caller: Caller,
    /// the parts of the path that stand for a name
    pub(crate) names: Vec<String>,
    pub(crate) params: Params,
    pub(crate) body: Vec<u8>,
}

/// What an endpoint does, on a thread that may block.
pub(crate) type Run = fn(&Context) -> ApiResult<Reply>;

/// Whether a request will be answered, as far as that can be told without its body.
pub(crate) type Admit = fn(&Context) -> ApiResult<()>;

pub(crate) struct Endpoint {
    pub(crate) method: Method,
    /// `{}` stands for a name
    pub(crate) path: &'static str,
    pub(crate) params: &'static [Param],
    /// bytes and no parameters are in the body, which is read when this has been asked
    pub(crate) takes_bytes: Option<Admit>,
    pub(crate) run: Run,
}

pub(crate) const fn endpoint(
    method: Method,
    path: &'static str,
    params: &'static [Param],
    run: Run,
) -> Endpoint {
    Endpoint { method, path, params, takes_bytes: None, run }
}

pub(crate) const NS: Param = optional("ns", Kind::Form(is::<Namespace>));
pub(crate) const TYPE: Kind = Kind::OneOf(&["vm", "ct", "host"]);
pub(crate) const ID: Kind = Kind::Form(is::<BackupId>);
pub(crate) const BACKUP_TYPE: Param = required("backup-type", TYPE);
pub(crate) const BACKUP_ID: Param = required("backup-id", ID);
pub(crate) const BACKUP_TIME: Param = required("backup-time", at_least(1));
const STORE: Param = required("store", Kind::Form(is_safe_name));

/// What an upgrade to a session takes.
pub(crate) const BACKUP_PARAMS: &[Param] = &[
    STORE,
    NS,
    BACKUP_TYPE,
    BACKUP_ID,
    BACKUP_TIME,
    optional("debug", Kind::Bool),
    optional("benchmark", Kind::Bool),
    optional("no-cache", Kind::Bool),
];
pub(crate) const READER_PARAMS: &[Param] =
    &[STORE, NS, BACKUP_TYPE, BACKUP_ID, BACKUP_TIME, optional("debug", Kind::Bool)];

/// A snapshot in a namespace of a datastore.
pub(crate) struct SnapshotPath {
    pub(crate) store: String,
    pub(crate) namespace: Namespace,
    pub(crate) snapshot: SnapshotId,
}

impl SnapshotPath {
    /// From parameters that name all of it.
    pub(crate) fn of(params: &Params) -> ApiResult<Self> {
        let store = params.needed("store")?;
        Ok(Self { store, namespace: namespace(params)?, snapshot: snapshot(params)? })
    }
}

pub(crate) fn namespace(params: &Params) -> ApiResult<Namespace> {
    Ok(params.parsed("ns")?.unwrap_or_default())
}

pub(crate) fn group(params: &Params) -> ApiResult<GroupId> {
    let kind: BackupType = params.needed("backup-type")?;
    Ok(GroupId { kind, id: params.needed("backup-id")? })
}

pub(crate) fn snapshot(params: &Params) -> ApiResult<SnapshotId> {
    let time = params.integer("backup-time").unwrap_or_default();
    let time = BackupTime::from_unix(time).map_err(|error| ApiError::bad(error.to_string()))?;
    Ok(SnapshotId { group: group(params)?, time })
}

impl Context {
    pub(crate) fn store_name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Fails unless the caller has one of these privileges on a namespace.
    pub(crate) fn require(&self, namespace: &Namespace, wanted: Privileges) -> ApiResult<()> {
        let store = self.store_name();
        match self.server.privileges(&self.caller.id, store, namespace).has_any(wanted) {
            true => Ok(()),
            false => Err(missing(store, namespace, wanted)),
        }
    }

    /// Whether the caller may do it for all groups; where he may for his own only, false.
    pub(crate) fn all_or_own(
        &self,
        namespace: &Namespace,
        all: Privileges,
        own: Privileges,
    ) -> ApiResult<bool> {
        let store = self.store_name();
        let privileges = self.server.privileges(&self.caller.id, store, namespace);
        if privileges.has_any(all) {
            return Ok(true);
        }
        match privileges.has_any(own) {
            true => Ok(false),
            false => Err(missing(store, namespace, all.and(own))),
        }
    }

    pub(crate) fn require_owner(
        &self,
        namespace: &Namespace,
        group: &GroupId,
        store: &keepwell_store::DirStore,
    ) -> ApiResult<()> {
        let owner = store.owner_of(namespace, group)?;
        let owner =
            owner.ok_or_else(|| ApiError::bad(format!("backup group {group} does not exist")))?;
        match owns(&self.caller.id, &owner) {
            true => Ok(()),
            false => {
                let caller = &self.caller.id;
                Err(ApiError::bad(format!("backup owner check failed ({caller} != {owner})")))
            }
        }
    }
}

fn missing(store: &str, namespace: &Namespace, wanted: Privileges) -> ApiError {
    let (names, path) = (wanted.names(), acl_path(store, namespace));
    let text = format!("permission check failed - missing {names} on {path}");
    ApiError::new(StatusCode::FORBIDDEN, text)
}

/// Endpoints that need nobody to be known.
pub(crate) fn is_open(method: &Method, path: &str) -> bool {
    matches!(
        (method.as_str(), path),
        ("GET", "ping" | "access/domains") | ("POST", "access/ticket")
    )
}

pub(crate) const USER_ID: Kind = Kind::Form(is_auth_id);

const OWN: &[Endpoint] = &[
    endpoint(Method::GET, "ping", &[], |_| Ok(Reply::Data(json!({ "pong": true })))),
    endpoint(Method::GET, "version", &[], version),
    endpoint(
        Method::POST,
        "access/ticket",
        &[
            required("username", USER_ID),
            required("password", Kind::Text),
            optional("path", Kind::Text),
            optional("privs", Kind::Text),
            optional("port", at_least(1)),
            optional("tfa-challenge", Kind::Text),
            optional("http-only", Kind::Bool),
        ],
        ticket,
    ),
    endpoint(Method::GET, "access/domains", &[], |_| {
        let pbs = json!({ "realm": "pbs", "type": "pbs", "comment": "Keepwell's own users" });
        let pam = json!({
            "realm": "pam", "type": "pam", "default": true, "comment": "Accounts of the system",
        });
        Ok(Reply::Data(json!([pam, pbs])))
    }),
    endpoint(Method::GET, "access/users", &[optional("include_tokens", Kind::Bool)], users),
    endpoint(
        Method::GET,
        "access/permissions",
        &[optional("auth-id", USER_ID), optional("path", Kind::Text)],
        permissions,
    ),
    endpoint(Method::GET, "access/acl", &[], acl),
];

/// All, in the order in which they are looked up.
pub(crate) fn endpoints() -> impl Iterator<Item = &'static Endpoint> {
    OWN.iter().chain(admin::ENDPOINTS).chain(node::ENDPOINTS)
}

/// The endpoint for a path without its format, and the names in that path.
pub(crate) fn find(method: &Method, path: &str) -> Option<(&'static Endpoint, Vec<String>)> {
    let given: Vec<&str> = path.split('/').collect();
    endpoints().filter(|endpoint| endpoint.method == *method).find_map(|endpoint| {
        let parts: Vec<&str> = endpoint.path.split('/').collect();
        if parts.len() != given.len() {
            return None;
        }
        let mut names = Vec::new();
        for (part, given) in parts.iter().zip(&given) {
            match *part {
                "{}" => {
                    let name = percent_encoding::percent_decode_str(given).decode_utf8().ok()?;
                    names.push(name.into_owned());
                }
                part if part == *given => {}
                _ => return None,
            }
        }
        Some((endpoint, names))
    })
}

/// Names below a path that is no endpoint itself, as the reference lists them.
pub(crate) fn directory(path: &str) -> Option<Value> {
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let upgrades = ["backup", "reader"];
    let paths = endpoints().map(|endpoint| endpoint.path).chain(upgrades);
    let below = paths.filter_map(|known| {
        let mut rest = known;
        let mut left = prefix.as_str();
        // A name in the pattern stands for any name in the path.
        while !left.is_empty() {
            let (given, after) = left.split_once('/')?;
            let (part, rest_after) = rest.split_once('/')?;
            if part != given && part != "{}" {
                return None;
            }
            (left, rest) = (after, rest_after);
        }
        rest.split('/').next().filter(|name| *name != "{}")
    });
    let mut names: Vec<&str> = below.collect();
    names.sort_unstable();
    names.dedup();
    let list: Vec<Value> = names.iter().map(|name| json!({ "subdir": name })).collect();
    (!list.is_empty()).then(|| list.into())
}

fn version(context: &Context) -> ApiResult<Reply> {
    let version = context.server.environment.version;
    let (version, release) = version.rsplit_once('.').unwrap_or((version, "0"));
    Ok(Reply::Data(json!({ "release": release, "repoid": "keepwell", "version": version })))
}

fn ticket(context: &Context) -> ApiResult<Reply> {
    let user: AuthId = context.params.needed("username")?;
    let password = context.params.text("password").unwrap_or_default();
    let data = context.server.login(&user, password, context.caller.address)?;
    Ok(Reply::Data(data))
}

/// Whoever may audit the system sees all, others themselves.
fn sees_all(context: &Context) -> bool {
    let access = context.server.access();
    let privileges = access.privileges(&context.caller.id, "/access/users");
    privileges.has_any(Privileges::SYS_AUDIT.and(Privileges::PERMISSIONS_MODIFY))
}

fn users(context: &Context) -> ApiResult<Reply> {
    let access = context.server.access();
    let all = sees_all(context);
    let with_tokens = context.params.flag("include_tokens") == Some(true);
    let own = crate::access::user_of(&context.caller.id).to_owned();
    let users = access.users.iter().filter(|user| all || user.id == own);
    let list: Vec<Value> = users
        .map(|user| {
            let mut item = json!({ "userid": user.id });
            if let Some(comment) = &user.account.comment {
                item["comment"] = comment.as_str().into();
            }
            if !user.account.enabled {
                item["enable"] = false.into();
            }
            if let Some(expire) = user.account.expire {
                item["expire"] = expire.into();
            }
            if with_tokens {
                let prefix = format!("{}!", user.id);
                let tokens = access.tokens.iter().filter(|token| token.id.starts_with(&prefix));
                item["tokens"] =
                    tokens.map(|token| json!({ "tokenid": token.id })).collect::<Vec<_>>().into();
            }
            item
        })
        .collect();
    Ok(Reply::Data(list.into()))
}

fn permissions(context: &Context) -> ApiResult<Reply> {
    let id: AuthId = context.params.parsed("auth-id")?.unwrap_or_else(|| context.caller.id.clone());
    let is_own = owns(&context.caller.id, id.as_str());
    if !is_own && !sees_all(context) {
        return Err(ApiError::forbidden());
    }
    let access = context.server.access();
    let mut paths: Vec<String> = match context.params.text("path") {
        Some(path) => vec![path.to_owned()],
        None => {
            let stores = context.server.datastores();
            let stores = stores.list.iter().map(|store| format!("/datastore/{}", store.name));
            ["/", "/access", "/datastore", "/system"]
                .into_iter()
                .map(str::to_owned)
                .chain(stores)
                .chain(access.grants.iter().map(|grant| grant.path.clone()))
                .collect()
        }
    };
    paths.sort();
    paths.dedup();
    let mut map = serde_json::Map::new();
    for path in paths {
        let privileges = access.privileges(&id, &path);
        let names = Privileges::ALL.iter().filter(|(_, one)| privileges.has_any(*one));
        let names: serde_json::Map<String, Value> =
            names.map(|(name, _)| ((*name).to_owned(), true.into())).collect();
        if !names.is_empty() {
            map.insert(path, names.into());
        }
    }
    Ok(Reply::Data(map.into()))
}

fn acl(context: &Context) -> ApiResult<Reply> {
    let access = context.server.access();
    let all = sees_all(context);
    let own = |who: &str| owns(&context.caller.id, who);
    let grants = access.grants.iter().filter(|grant| all || own(&grant.who));
    let list: Vec<Value> = grants
        .map(|grant| {
            json!({
                "path": grant.path, "propagate": grant.propagate, "roleid": grant.role,
                "ugid": grant.who, "ugid_type": "user",
            })
        })
        .collect();
    Ok(Reply::Data(list.into()))
}
