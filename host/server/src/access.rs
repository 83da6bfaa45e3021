//! Users, tokens and what they may: `access.toml`. Spec: protocol.md §2, §3.

use crate::config::{load, save};
use crate::error::{Result, refused};
use crate::files;
use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use keepwell_model::{AuthId, is_safe_name};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// What somebody may do, as a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privileges(u32);

macro_rules! privileges {
    ($($name:ident $bit:literal $text:literal,)*) => {
        impl Privileges {
            $(pub const $name: Self = Self(1 << $bit);)*
            /// All, with their names.
            pub const ALL: &'static [(&'static str, Self)] = &[$(($text, Self::$name)),*];
        }
    };
}

privileges! {
    SYS_AUDIT 0 "Sys.Audit",
    SYS_MODIFY 1 "Sys.Modify",
    PERMISSIONS_MODIFY 2 "Permissions.Modify",
    DATASTORE_ALLOCATE 3 "Datastore.Allocate",
    AUDIT 4 "Datastore.Audit",
    MODIFY 5 "Datastore.Modify",
    READ 6 "Datastore.Read",
    VERIFY 7 "Datastore.Verify",
    BACKUP 8 "Datastore.Backup",
    PRUNE 9 "Datastore.Prune",
}

impl Privileges {
    pub const NONE: Self = Self(0);

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether at least one of these is there.
    pub fn has_any(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// `Datastore.Audit|Datastore.Backup`
    pub fn names(self) -> String {
        let names = Self::ALL.iter().filter(|(_, one)| self.has_any(*one)).map(|(name, _)| *name);
        names.collect::<Vec<_>>().join("|")
    }
}

const NO_ACCESS: &str = "NoAccess";

/// Roles and what they allow.
pub const ROLES: &[(&str, Privileges)] = &[
    ("Admin", Privileges(u32::MAX)),
    ("Audit", Privileges::SYS_AUDIT.and(Privileges::AUDIT)),
    (NO_ACCESS, Privileges::NONE),
    (
        "DatastoreAdmin",
        Privileges::AUDIT
            .and(Privileges::MODIFY)
            .and(Privileges::READ)
            .and(Privileges::VERIFY)
            .and(Privileges::BACKUP)
            .and(Privileges::PRUNE),
    ),
    ("DatastoreReader", Privileges::AUDIT.and(Privileges::VERIFY).and(Privileges::READ)),
    ("DatastoreBackup", Privileges::BACKUP),
    ("DatastorePowerUser", Privileges::BACKUP.and(Privileges::PRUNE)),
    ("DatastoreAudit", Privileges::AUDIT),
];

fn role(name: &str) -> Option<Privileges> {
    ROLES.iter().find(|(role, _)| *role == name).map(|(_, privileges)| *privileges)
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

/// What users and tokens have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Account {
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Unix seconds; 0 or nothing is never
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl Default for Account {
    fn default() -> Self {
        Self { enabled: true, expire: None, comment: None }
    }
}

impl Account {
    fn is_active(&self, now: i64) -> bool {
        self.enabled && self.expire.is_none_or(|expire| expire == 0 || expire > now)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    pub id: String,
    /// of realm `pbs`: in the form of the PHC; without one nobody can log in
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    #[serde(flatten)]
    pub account: Account,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Token {
    /// `user@realm!name`
    pub id: String,
    /// SHA-256 of the secret, which is random
    pub secret: String,
    #[serde(flatten)]
    pub account: Account,
}

/// One entry of the access control list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Grant {
    pub path: String,
    /// user or token
    pub who: String,
    pub role: String,
    /// also for what lies below
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub propagate: bool,
}

/// `access.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    #[serde(default, rename = "user")]
    pub users: Vec<User>,
    #[serde(default, rename = "token")]
    pub tokens: Vec<Token>,
    #[serde(default, rename = "acl")]
    pub grants: Vec<Grant>,
}

/// The one who may do everything.
pub const SUPERUSER: &str = "root@pam";

/// The user that an id speaks of: a token's owner.
pub fn user_of(id: &AuthId) -> &str {
    id.as_str().split('!').next().unwrap_or_default()
}

/// Whether text may name somebody: realms have 2 to 32 characters. Spec: protocol.md §2.1.
pub(crate) fn is_auth_id(text: &str) -> bool {
    let realm = |id: &AuthId| {
        let realm = user_of(id).rsplit_once('@').map_or("", |(_, realm)| realm);
        (2..=32).contains(&realm.len())
    };
    text.parse::<AuthId>().is_ok_and(|id| realm(&id))
}

pub fn is_token(id: &AuthId) -> bool {
    id.as_str().contains('!')
}

/// Whether a caller may use a group of this owner: his own, or that of one of his tokens.
pub fn owns(caller: &AuthId, owner: &str) -> bool {
    caller.as_str() == owner
        || owner.split_once('!').is_some_and(|(user, _)| user == caller.as_str())
}

impl Access {
    pub fn path(state: &Path) -> PathBuf {
        state.join("access.toml")
    }

    pub fn load(state: &Path) -> Result<Self> {
        let access: Self = load(&Self::path(state))?;
        for grant in &access.grants {
            check_grant(grant)?;
        }
        Ok(access)
    }

    pub fn save(&self, state: &Path) -> Result<()> {
        save(&Self::path(state), self, files::SECRET)
    }

    pub fn user(&self, id: &str) -> Option<&User> {
        self.users.iter().find(|user| user.id == id)
    }

    /// Whether somebody exists, is enabled and has not expired.
    pub fn is_active(&self, id: &AuthId, now: i64) -> bool {
        let user = user_of(id);
        let user_is = match self.user(user) {
            Some(user) => user.account.is_active(now),
            None => user == SUPERUSER,
        };
        let is_it = |token: &&Token| token.id == id.as_str();
        let token_is = !is_token(id)
            || self.tokens.iter().find(is_it).is_some_and(|token| token.account.is_active(now));
        user_is && token_is
    }

    /// Whether this is a token's secret.
    pub fn verifies_token(&self, id: &AuthId, secret: &str) -> bool {
        let token = self.tokens.iter().find(|token| token.id == id.as_str());
        // Digests of random secrets: comparing them tells nothing of the secrets.
        token.is_some_and(|token| token.secret == hash_token(secret))
    }

    /// What somebody may do at a path such as `/datastore/store1/ns1`.
    pub fn privileges(&self, id: &AuthId, path: &str) -> Privileges {
        if id.as_str() == SUPERUSER {
            return Privileges(u32::MAX);
        }
        let own = self.granted(id.as_str(), path);
        match is_token(id) {
            false => own,
            true if user_of(id) == SUPERUSER => own,
            true => own.common(self.granted(user_of(id), path)),
        }
    }

    /// A more specific path replaces what was inherited.
    fn granted(&self, who: &str, path: &str) -> Privileges {
        let mut privileges = Privileges::NONE;
        let mut at = String::new();
        let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for depth in 0..=components.len() {
            if let Some(component) = depth.checked_sub(1).and_then(|index| components.get(index)) {
                at = format!("{at}/{component}");
            }
            let here = self.grants.iter().filter(|grant| {
                grant.who == who
                    && normal(&grant.path) == at
                    && (grant.propagate || depth == components.len())
            });
            let roles: Vec<&str> = here.map(|grant| grant.role.as_str()).collect();
            if roles.contains(&NO_ACCESS) {
                privileges = Privileges::NONE;
            } else if !roles.is_empty() {
                let granted = roles.iter().filter_map(|name| role(name));
                privileges = granted.fold(Privileges::NONE, Privileges::and);
            }
        }
        privileges
    }

    /// Whether somebody has one of these privileges at a path or anywhere below it.
    pub fn has_any_below(&self, id: &AuthId, path: &str, wanted: Privileges) -> bool {
        let path = normal(path);
        let below = |grant: &&Grant| normal(&grant.path).starts_with(&format!("{path}/"));
        self.privileges(id, &path).has_any(wanted)
            || self
                .grants
                .iter()
                .filter(below)
                .any(|grant| self.privileges(id, &grant.path).has_any(wanted))
    }
}

/// Without a slash at the end; the root is empty.
fn normal(path: &str) -> String {
    let components = path.split('/').filter(|part| !part.is_empty());
    components.fold(String::new(), |path, component| format!("{path}/{component}"))
}

/// Refuses roles that there are not, and paths that are none.
pub fn check_grant(grant: &Grant) -> Result<()> {
    if role(&grant.role).is_none() {
        let names: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
        let problem = format!("there is no role '{}': use one of {}", grant.role, names.join(", "));
        return Err(refused(problem));
    }
    if !grant.path.starts_with('/') {
        return Err(refused(format!("ACL path '{}' does not begin with '/'", grant.path)));
    }
    let names = grant.path.split('/').skip(1);
    if grant.path != "/" && !names.clone().all(is_safe_name) {
        return Err(refused(format!(
            "ACL path '{}' is not made of safe names with one '/' between them",
            grant.path
        )));
    }
    let known = ["", "datastore", "system", "access"];
    let first = grant.path.split('/').nth(1).unwrap_or_default();
    if !known.contains(&first) {
        let problem = "is none: use /, /datastore, /datastore/STORE or /datastore/STORE/NAMESPACE";
        return Err(refused(format!("ACL path '{}' {problem}", grant.path)));
    }
    Ok(())
}

pub fn hash_token(secret: &str) -> String {
    let digest = digest(&SHA256, secret.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Slow on purpose.
pub fn hash_password(password: &str) -> Result<String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|problem| refused(format!("password: {problem}")))?.to_string())
}

/// Verifies passwords, one at a time and all on one thread: each takes 19 MiB, which other threads
/// would keep.
pub(crate) struct Verifier(Mutex<Worker>);

struct Worker {
    jobs: SyncSender<(Zeroizing<String>, String)>,
    answers: Receiver<bool>,
}

impl Verifier {
    pub(crate) fn start() -> Self {
        let (jobs, work) = sync_channel::<(Zeroizing<String>, String)>(1);
        let (answer, answers) = sync_channel(1);
        std::thread::spawn(move || {
            for (password, hash) in work {
                if answer.send(verify_password(&password, &hash)).is_err() {
                    return;
                }
            }
        });
        Self(Mutex::new(Worker { jobs, answers }))
    }

    /// Waits for its turn, and looks then whether it is still wanted.
    pub(crate) fn verify(
        &self,
        password: &str,
        hash: &str,
        is_wanted: impl FnOnce() -> bool,
    ) -> bool {
        let worker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let job = (Zeroizing::new(password.to_owned()), hash.to_owned());
        is_wanted() && worker.jobs.send(job).is_ok() && worker.answers.recv().unwrap_or(false)
    }
}

fn verify_password(password: &str, hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(grants: &[(&str, &str, &str, bool)]) -> Access {
        let grants = grants.iter().map(|(path, who, role, propagate)| Grant {
            path: (*path).into(),
            who: (*who).into(),
            role: (*role).into(),
            propagate: *propagate,
        });
        Access { grants: grants.collect(), ..Access::default() }
    }

    #[test]
    fn a_longer_path_replaces_what_was_inherited() {
        let access = access(&[
            ("/", "a@pbs", "Admin", true),
            ("/datastore/s1", "a@pbs", "DatastoreAudit", true),
            ("/datastore/s1/x", "a@pbs", "NoAccess", true),
            ("/datastore/s2", "a@pbs", "DatastoreBackup", false),
        ]);
        let a: AuthId = "a@pbs".parse().unwrap();
        let at = |path: &str| access.privileges(&a, path);
        assert!(at("/").has_any(Privileges::MODIFY));
        assert_eq!(at("/datastore/s1"), Privileges::AUDIT);
        assert_eq!(at("/datastore/s1/y"), Privileges::AUDIT);
        assert_eq!(at("/datastore/s1/x/deep"), Privileges::NONE);
        assert_eq!(at("/datastore/s2"), Privileges::BACKUP);
        assert!(at("/datastore/s2/ns").has_any(Privileges::MODIFY), "not propagated");
        let other: AuthId = "b@pbs".parse().unwrap();
        assert!(access.privileges(&other, "/").is_empty());
        let root: AuthId = "root@pam".parse().unwrap();
        assert!(access.privileges(&root, "/anything").has_any(Privileges::PRUNE));
    }

    #[test]
    fn paths_that_never_match_are_refused() {
        let check = |path: &str| {
            let (who, role) = ("a@pbs".into(), "Admin".into());
            check_grant(&Grant { path: path.into(), who, role, propagate: true }).is_ok()
        };
        for good in ["/", "/datastore", "/datastore/store1", "/datastore/s/a/b", "/system/tasks"] {
            assert!(check(good), "{good}");
        }
        for bad in ["", "x", "//", "/datastore//s", "/datastore/s/", "/datastore/../x", "/what"] {
            assert!(!check(bad), "{bad}");
        }
    }

    #[test]
    fn a_token_may_no_more_than_its_user() {
        let access = access(&[
            ("/datastore", "a@pbs", "DatastoreBackup", true),
            ("/datastore", "a@pbs!t", "DatastoreAdmin", true),
            ("/datastore", "root@pam!t", "DatastoreAudit", true),
        ]);
        let token: AuthId = "a@pbs!t".parse().unwrap();
        assert_eq!(access.privileges(&token, "/datastore/s"), Privileges::BACKUP);
        let of_root: AuthId = "root@pam!t".parse().unwrap();
        assert_eq!(access.privileges(&of_root, "/datastore/s"), Privileges::AUDIT);
        assert!(access.privileges(&of_root, "/").is_empty());
    }

    #[test]
    fn ids_have_a_user_and_a_realm() {
        for good in ["a@pbs", "a@pbs!tok", "a@example.org@pbs", "a@b2"] {
            assert!(is_auth_id(good), "{good}");
        }
        let long = format!("a@{}", "r".repeat(33));
        for bad in ["", "@pbs", "a@", "a@b", "a@b!tok", "pbs", &long] {
            assert!(!is_auth_id(bad), "{bad}");
        }
    }

    #[test]
    fn owners_are_compared_one_way() {
        let (user, token): (AuthId, AuthId) =
            ("a@pbs".parse().unwrap(), "a@pbs!t".parse().unwrap());
        assert!(owns(&user, "a@pbs") && owns(&user, "a@pbs!t") && owns(&token, "a@pbs!t"));
        assert!(!owns(&token, "a@pbs") && !owns(&token, "a@pbs!u") && !owns(&user, "b@pbs"));
    }

    #[test]
    fn accounts_read_as_they_are_written() {
        let text = "[[user]]\nid = \"a@pbs\"\nenabled = false\nexpire = 5\ncomment = \"c\"\n";
        let access: Access = toml::from_str(text).unwrap();
        let account = Account { enabled: false, expire: Some(5), comment: Some("c".into()) };
        assert_eq!(access.users[0].account, account);
        let again: Access = toml::from_str(&toml::to_string(&access).unwrap()).unwrap();
        assert_eq!(again.users, access.users);
        let error = toml::from_str::<Access>(&format!("{text}enable = false\n")).unwrap_err();
        assert!(error.to_string().contains("unknown field `enable`"), "{error}");
    }

    #[test]
    fn passwords_and_secrets_are_kept_as_hashes() {
        let hash = hash_password("secret1").unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(verify_password("secret1", &hash));
        assert!(!verify_password("secret2", &hash) && !verify_password("secret1", "x"));
        let verifier = Verifier::start();
        assert!(verifier.verify("secret1", &hash, || true));
        assert!(!verifier.verify("secret2", &hash, || true));
        assert!(!verifier.verify("secret1", &hash, || false), "no more wanted");
        assert_eq!(hash_token("x").len(), 64);
    }
}
