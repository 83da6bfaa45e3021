//! Archives as a read-only file system, over FUSE. May use engine.
//!
//! The kernel asks, several threads answer. What is in a backup never changes, so the kernel may keep
//! what it was told; what lists backups is asked for again after a second. Memory is bounded by what
//! the kernel remembers and by the caches of the archives that are open.

mod archive;
mod directory;
mod fs;
mod inode;

pub use archive::{Links, OpenArchive, Opener, Problem, further_names, links_of};
pub use directory::{Child, Directory};

use archive::Lazy;
use fs::Fs;
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use inode::Item;
use keepwell_engine::plugin::Node;
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// What is mounted.
pub enum Root {
    /// The root of an archive: a directory, or a file where the mount point is one.
    Archive(Opener),
    Directory(Arc<dyn Directory>),
}

/// Hears of what could not be read.
pub type Log = Box<dyn Fn(&str) + Send + Sync>;

/// A file system that is there, and answers once it runs.
pub struct Mounted {
    session: Session<Fs>,
    target: PathBuf,
}

/// Threads that answer.
const THREADS: usize = 8;

impl Mounted {
    /// Mounts it. `source` is what the table of mounts shows.
    pub fn new(root: Root, target: &Path, source: &str, log: Log) -> io::Result<Self> {
        let root = match root {
            Root::Archive(opener) => {
                Item::Entry { archive: Arc::new(Lazy::new(opener)), node: Node::ROOT }
            }
            Root::Directory(directory) => Item::Directory(directory),
        };
        let mut config = Config::default();
        config.acl = SessionACL::Owner;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        // Commas part options.
        let source = source.replace([',', '\\'], "_");
        config.mount_options = vec![
            MountOption::FSName(source),
            MountOption::Subtype("keepwell".into()),
            MountOption::RO,
            MountOption::NoSuid,
            // A device of the backup is shown and not opened.
            MountOption::NoDev,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
        ];
        let session = Session::new(Fs::new(root, log), target, &config)?;
        Ok(Self { session, target: target.to_owned() })
    }

    /// Ends it from another thread.
    pub fn unmounter(&mut self) -> Unmounter {
        Unmounter { session: self.session.unmount_callable(), target: self.target.clone() }
    }

    /// Answers until it is unmounted.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Unmounts a file system.
pub struct Unmounter {
    session: SessionUnmounter,
    target: PathBuf,
}

impl Unmounter {
    /// Nobody finds it any more. Whoever uses it may go on as long as it runs.
    pub fn unmount(&mut self) -> io::Result<()> {
        if self.session.unmount().is_ok() {
            return Ok(());
        }
        // Something in it is in use.
        if rustix::mount::unmount(&self.target, UnmountFlags::DETACH).is_ok() {
            return Ok(());
        }
        let helper =
            Command::new("fusermount3").args(["-u", "-z", "--"]).arg(&self.target).output()?;
        match helper.status.success() {
            true => Ok(()),
            false => {
                Err(io::Error::other(String::from_utf8_lossy(&helper.stderr).trim().to_owned()))
            }
        }
    }
}
