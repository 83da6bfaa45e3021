//! What is encoded decodes to the same; arbitrary bytes never panic.

use super::*;
use crate::encode::{self, Omit};
use proptest::prelude::*;

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let kind = prop_oneof![
        Just(EntryKind::File),
        Just(EntryKind::Symlink),
        Just(EntryKind::BlockDevice),
        Just(EntryKind::CharacterDevice),
        Just(EntryKind::Fifo),
        Just(EntryKind::Socket),
    ];
    let attributes = prop::collection::vec(("user\\.[a-z]{1,9}", any::<Vec<u8>>()), 0..4);
    let stat = (0u32..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000);
    let bits = (any::<u16>(), prop::option::of(1u32..), (any::<u32>(), any::<u32>()));
    let target = prop::collection::vec(1u8.., 1..99);
    (kind, stat, bits, target, attributes).prop_map(
        |(kind, (mode, owner, group, seconds, nanoseconds), bits, target, attributes)| {
            let (flags, project, device) = bits;
            let (set, _): (Vec<_>, Vec<_>) =
                format::FLAG_PAIRS.iter().enumerate().partition(|(i, _)| flags & 1 << i != 0);
            let is_device = matches!(kind, EntryKind::BlockDevice | EntryKind::CharacterDevice);
            let extended = attributes
                .into_iter()
                .map(|(name, value)| ExtendedAttribute { name: name.into_bytes(), value });
            Metadata {
                mode,
                owner,
                group,
                modified: Timestamp { seconds, nanoseconds },
                inode_flags: set.iter().map(|(_, (kernel, _))| kernel).sum(),
                project,
                device: is_device.then_some(device),
                link_target: (kind == EntryKind::Symlink).then_some(target),
                extended: extended.collect(),
                ..empty_metadata(kind)
            }
        },
    )
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>().prop_filter("legal", |b| *b != 0 && *b != b'/'), 1..60)
        .prop_filter("not a dot", |name| name != b"." && name != b"..")
}

/// An archive with these children, in order, each file with this content.
fn archive(children: &[(Vec<u8>, Metadata)], content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::entry(&mut out, &empty_metadata(EntryKind::Directory), Omit::default());
    let mut rows = Vec::new();
    for (name, metadata) in children {
        let start = out.len() as u64;
        encode::filename(&mut out, name);
        encode::entry(&mut out, metadata, Omit::default());
        if metadata.kind == EntryKind::File {
            encode::header(&mut out, format::PAYLOAD, content.len() as u64);
            out.extend(content);
        }
        let hash = format::name_hash(name);
        rows.push(GoodbyeRow { hash, start, end: out.len() as u64 });
    }
    let position = out.len() as u64;
    encode::goodbye(&mut out, rows, 0, position);
    out
}

/// Entries below the root, up to the first that can't be read.
fn walk(bytes: &[u8]) -> (Vec<Entry>, Option<Failure>) {
    let decoder = Decoder::new(bytes);
    let mut entries = Vec::new();
    let mut depth = 1u32;
    let mut position = match decoder.root() {
        Ok(root) => root.next,
        Err(failure) => return (entries, Some(failure)),
    };
    while depth > 0 {
        match decoder.next(position) {
            Ok(Next::End { next }) => {
                depth -= 1;
                position = next;
            }
            Ok(Next::Entry(decoded)) => {
                position = decoded.next;
                depth += u32::from(decoded.entry.metadata.kind == EntryKind::Directory);
                entries.push(decoded.entry);
            }
            Err(failure) => return (entries, Some(failure)),
        }
    }
    (entries, None)
}

fn assert_same(left: &Metadata, right: &Metadata) {
    assert_eq!(format!("{left:?}"), format!("{right:?}"));
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(
        children in prop::collection::vec((any_name(), any_metadata()), 0..12),
        content in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = archive(&children, &content);
        let (entries, failure) = walk(&bytes);
        prop_assert!(failure.is_none(), "{:?}", failure);
        prop_assert_eq!(entries.len(), children.len());
        for (entry, (name, metadata)) in entries.iter().zip(&children) {
            prop_assert_eq!(&entry.name, name);
            let mut expected = metadata.clone();
            if metadata.kind == EntryKind::File {
                expected.size = content.len() as u64;
                let Content::Stored(extents) = &entry.content else { panic!("no content") };
                let at = extents[0].offset as usize;
                prop_assert_eq!(&bytes[at..at + content.len()], &content[..]);
            }
            assert_same(&entry.metadata, &expected);
        }
        let (entry_start, rows) = Decoder::new(&bytes[..]).table(bytes.len() as u64).unwrap();
        prop_assert_eq!(entry_start, 0);
        prop_assert_eq!(rows.len(), children.len());
        for row in rows {
            let Next::Entry(decoded) = Decoder::new(&bytes[..]).next(row.start).unwrap() else {
                panic!("row does not point to an entry")
            };
            prop_assert_eq!(format::name_hash(&decoded.entry.name), row.hash);
        }
    }

    #[test]
    fn truncated_archives_are_refused(
        children in prop::collection::vec((any_name(), any_metadata()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = archive(&children, b"content");
        let cut = cut.index(bytes.len());
        // The last table is not read by a walk, only its header.
        let table = bytes.len() - 24 * (children.len() + 1);
        prop_assert_eq!(walk(&bytes[..cut]).1.is_some(), cut < table);
    }

    #[test]
    fn damaged_archives_never_panic(
        children in prop::collection::vec((any_name(), any_metadata()), 0..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = archive(&children, b"content");
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        walk(&bytes);
        let _ = Decoder::new(&bytes[..]).table(bytes.len() as u64);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        walk(&bytes);
        let _ = Decoder::new(&bytes[..]).table(bytes.len() as u64);
    }
}

#[test]
fn illegal_names_are_refused() {
    for name in [&b".."[..], b".", b"a/b", b"a\0b"] {
        let file = (name.to_vec(), empty_metadata(EntryKind::File));
        let (entries, failure) = walk(&archive(&[file], b""));
        assert!(entries.is_empty() && matches!(failure, Some(Failure::Corrupt(_))), "{name:?}");
    }
}

#[test]
fn acls_survive_the_way_through_an_archive() {
    let kernel =
        "0200000001000600ffffffff02000600d204000004000400ffffffff10000600ffffffff20000000ffffffff";
    let value: Vec<u8> = (0..kernel.len() / 2)
        .map(|i| u8::from_str_radix(&kernel[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let extended = vec![ExtendedAttribute { name: b"system.posix_acl_access".into(), value }];
    let file = Metadata { mode: 0o660, extended, ..empty_metadata(EntryKind::File) };
    let (entries, _) = walk(&archive(&[(b"f".to_vec(), file.clone())], b""));
    assert_same(&entries[0].metadata, &file);
}
