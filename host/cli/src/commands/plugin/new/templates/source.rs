//! One text of all files of a directory, as for logs: `keepwell backup logs.{name}:/var/log/app`.
//!
//! A source says what its archive is made of; the host reads the files.

use keepwell_sdk::archive::{
    ArchiveType, Chunking, Info, Omission, Origin, OriginKind, Plugin, Reader, Request, Source,
    Summary, open_stream, skipped,
};
use keepwell_sdk::options::{Bytes, option};
use keepwell_sdk::single::SingleFile;
use keepwell_sdk::{EntryKind, Failure, OptionKind, OptionSpec};
use serde::Deserialize;

pub struct {Type}Plugin;

/// What is given on the command line.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Options {
    #[serde(default)]
    only_suffix: Option<Bytes>,
}

impl Plugin for {Type}Plugin {
    fn describe() -> Info {
        let help = "Take only files whose names end so, such as '.log'";
        let suffix: OptionSpec = option("only-suffix", OptionKind::Text, help);
        Info {
            name: "{name}".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "The files of a directory as one text".into(),
            options: vec![suffix],
            // What it needs besides what the user named: nothing.
            capabilities: Vec::new(),
            archive_types: vec![ArchiveType {
                extension: "{name}".into(),
                origin: OriginKind::Directory,
                noun: "directory".into(),
                parts: Vec::new(),
            }],
        }
    }
}

/// What stands in front of a file's content.
fn head(name: &[u8]) -> Vec<u8> {
    [b"==> ", name, b" <==\n"].concat()
}

fn is_wanted(name: &[u8], options: &Options) -> bool {
    options.only_suffix.as_ref().is_none_or(|suffix| name.ends_with(&suffix.0))
}

impl Source for {Type}Plugin {
    type Options = Options;

    fn write_archive(
        origin: Origin,
        request: Request,
        options: Options,
    ) -> Result<Summary, Failure> {
        let Origin::Directory(directory) = origin else {
            return Err(Failure::Unsupported("it takes a directory".into()));
        };
        let suffix = format!(".{}", request.archive_extension);
        let stream = open_stream(&suffix, Chunking::ContentDefined, None)?;
        let mut entries = 0;
        loop {
            // In batches, in the order of their names: memory does not grow with the directory.
            let mut children = directory.read(256)?;
            if children.is_empty() {
                return Ok(Summary { entries });
            }
            children.retain(|child| {
                child.kind == EntryKind::File && is_wanted(&child.name, &options)
            });
            for (child, opened) in children.iter().zip(directory.open_children(&children)) {
                let opened = match opened {
                    Ok(opened) => opened,
                    // It ends up in the report, and the backup goes on.
                    Err(Failure::Denied(why)) => {
                        skipped(&[child.name.clone()], Omission::Denied, &why);
                        continue;
                    }
                    Err(Failure::NotFound(why)) => {
                        skipped(&[child.name.clone()], Omission::Vanished, &why);
                        continue;
                    }
                    Err(other) => return Err(other),
                };
                // It may be something else by now.
                let Some(file) = opened.handle else { continue };
                stream.write(&head(&child.name))?;
                stream.splice(&file, 0, opened.examined.metadata.size)?;
                entries += 1;
            }
        }
    }
}

/// The archive is one file for restore.
impl Reader for {Type}Plugin {
    type Archive = SingleFile;
}

keepwell_sdk::export_archive_plugin!({Type}Plugin);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_by_their_ends() {
        let options = Options { only_suffix: Some(Bytes(b".log".to_vec())) };
        assert!(is_wanted(b"a.log", &options) && !is_wanted(b"a.txt", &options));
        assert!(is_wanted(b"a.txt", &Options { only_suffix: None }));
        assert_eq!(head(b"a.log"), b"==> a.log <==\n");
    }
}
