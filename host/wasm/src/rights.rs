//! What a plugin may do beyond the contract's plain functions: what it asks for and the
//! administrator grants, both.

use crate::web_place;
use keepwell_engine::plugin::Capability;
use std::path::{Component, Path, PathBuf};

/// What counts: the part of what was asked for that was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    pub(crate) read: Vec<PathBuf>,
    pub(crate) run: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) clock: bool,
    pub(crate) random: bool,
    /// bytes
    pub(crate) scratch: Option<u64>,
    /// hosts, perhaps with ports
    pub(crate) http: Vec<String>,
}

/// In what is asked for: whatever is granted.
pub(crate) const ANY: &str = "*";

impl Rights {
    /// What is in both.
    pub fn of(asked: &[Capability], granted: &[Capability]) -> Self {
        let mut rights = Self::default();
        for asked in asked {
            for granted in granted {
                rights.add(asked, granted);
            }
        }
        rights
    }

    /// Each of them.
    pub fn list(&self) -> Vec<Capability> {
        let read = self.read.iter().map(|path| Capability::Read(path.display().to_string()));
        let run = self.run.iter().cloned().map(Capability::Run);
        let environment = self.environment.iter().cloned().map(Capability::Environment);
        let clock = self.clock.then_some(Capability::Clock);
        let random = self.random.then_some(Capability::Random);
        let scratch = self.scratch.map(Capability::Scratch);
        let http = self.http.iter().cloned().map(Capability::Http);
        let all = read.chain(run).chain(environment).chain(clock).chain(random).chain(scratch);
        all.chain(http).collect()
    }

    fn add(&mut self, asked: &Capability, granted: &Capability) {
        use Capability::{Clock, Environment, Http, Random, Read, Run, Scratch};
        let is_same = |asked: &String, granted: &String| asked == ANY || asked == granted;
        match (asked, granted) {
            (Read(asked), Read(granted)) => {
                let narrower = match (Path::new(asked), Path::new(granted)) {
                    (_, granted) if asked == ANY => granted,
                    (asked, granted) if granted.starts_with(asked) => granted,
                    (asked, granted) if asked.starts_with(granted) => asked,
                    _ => return,
                };
                if is_plain(narrower) {
                    self.read.push(narrower.to_owned());
                }
            }
            (Run(asked), Run(granted)) if is_same(asked, granted) => self.run.push(granted.clone()),
            (Environment(asked), Environment(granted)) if is_same(asked, granted) => {
                self.environment.push(granted.clone());
            }
            (Http(asked), Http(granted)) => {
                let granted = web_place(granted);
                let is_same = asked == ANY || web_place(asked) == granted;
                self.http.extend(granted.filter(|_| is_same));
            }
            (Clock, Clock) => self.clock = true,
            (Random, Random) => self.random = true,
            (Scratch(asked), Scratch(granted)) => {
                let bytes = *asked.min(granted);
                self.scratch = Some(self.scratch.map_or(bytes, |known| known.max(bytes)));
            }
            _ => {}
        }
    }

    /// A path that may be read, as the granted one and what lies below it.
    pub(crate) fn path<'a>(&self, path: &'a Path) -> Option<(&Path, &'a Path)> {
        let mut granted = self.read.iter().filter(|_| is_plain(path));
        granted.find_map(|root| Some((root.as_path(), path.strip_prefix(root).ok()?)))
    }
}

/// Absolute, and without "..".
pub(crate) fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::{Clock, Environment, Random, Read, Run, Scratch};

    fn read(asked: &str, granted: &str) -> Vec<PathBuf> {
        Rights::of(&[Read(asked.into())], &[Read(granted.into())]).read
    }

    #[test]
    fn what_is_asked_for_and_granted_counts() {
        assert_eq!(read("/etc", "/etc/ssl"), [PathBuf::from("/etc/ssl")]);
        assert_eq!(read("/etc/ssl", "/etc"), [PathBuf::from("/etc/ssl")]);
        assert_eq!(read("*", "/srv"), [PathBuf::from("/srv")]);
        assert!(read("/etc", "/etcetera").is_empty() && read("/etc", "*").is_empty());
        assert!(read("*", "srv").is_empty() && read("*", "/srv/../etc").is_empty());
        let asked = [Run("a".into()), Environment("*".into()), Scratch(100), Clock];
        let granted = [Run("b".into()), Environment("X".into()), Scratch(50), Random];
        let rights = Rights::of(&asked, &granted);
        let expected =
            Rights { environment: vec!["X".into()], scratch: Some(50), ..Rights::default() };
        assert_eq!(rights, expected);
        assert_eq!(rights.list(), [Environment("X".into()), Scratch(50)]);
        assert_eq!(Rights::of(&granted, &[]), Rights::default());
    }

    #[test]
    fn no_path_leads_out_of_what_is_granted() {
        let rights = Rights { read: vec!["/srv/a".into()], ..Rights::default() };
        let path = |path: &'static str| rights.path(Path::new(path)).map(|(_, rest)| rest);
        assert_eq!(path("/srv/a/b/c"), Some(Path::new("b/c")));
        assert_eq!(path("/srv/a"), Some(Path::new("")));
        for outside in ["/srv/ab", "/srv", "/srv/a/../b", "srv/a", "", "/etc/passwd"] {
            assert_eq!(path(outside), None, "{outside}");
        }
    }
}
