//! Headers of tar archives: blocks of 512 bytes, and before them records ("pax") for what does not fit.

use keepwell_sdk::{EntryKind, ExtendedAttribute, Failure, Metadata, Timestamp, empty_metadata};

pub const BLOCK: usize = 512;
/// Larger blocks of records are no archive of ours, nor of anybody who means well.
const RECORDS_BYTES_MAX: u64 = 1 << 20;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a member of the archive is.
#[derive(Clone, Debug)]
pub struct Member {
    /// from the root, without a slash at either end; empty for the root
    pub path: Vec<u8>,
    pub metadata: Metadata,
    /// the path of its first name, of one more name of a file
    pub hard_link: Option<Vec<u8>>,
}

/// Up to the next block.
pub fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// The header of a member, with records where it takes some.
pub fn encode(member: &Member) -> Vec<u8> {
    let metadata = &member.metadata;
    let mut records = Vec::new();
    let mut path = [b"./", &member.path[..]].concat();
    if metadata.kind == EntryKind::Directory && !member.path.is_empty() {
        path.push(b'/');
    }
    let target = member.hard_link.as_ref().map(|path| [b"./", &path[..]].concat());
    let target = target.or_else(|| metadata.link_target.clone()).unwrap_or_default();
    if path.len() > 100 || !path.is_ascii() {
        record(&mut records, b"path", &path);
    }
    if target.len() > 100 || !target.is_ascii() {
        record(&mut records, b"linkpath", &target);
    }
    let size = if member.hard_link.is_some() { 0 } else { metadata.size };
    for (key, value, max) in [
        ("size", size, (1 << 33) - 1),
        ("uid", metadata.owner.into(), (1 << 21) - 1),
        ("gid", metadata.group.into(), (1 << 21) - 1),
    ] {
        if value > max {
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    let Timestamp { seconds, nanoseconds } = metadata.modified;
    if nanoseconds > 0 || !(0..1 << 33).contains(&seconds) {
        record(&mut records, b"mtime", time_text(metadata.modified).as_bytes());
    }
    for attribute in &metadata.extended {
        record(&mut records, &[XATTR, &attribute.name].concat(), &attribute.value);
    }
    let mut out = Vec::new();
    if !records.is_empty() {
        let size = records.len() as u64;
        let extended = Metadata { mode: 0o644, size, ..empty_metadata(EntryKind::File) };
        out.extend(block(b"././@PaxHeader", &extended, b'x', b"", size));
        out.extend(&records);
        out.resize(out.len() + padding(size) as usize, 0);
    }
    let kind = match metadata.kind {
        _ if member.hard_link.is_some() => b'1',
        EntryKind::File | EntryKind::Socket => b'0',
        EntryKind::Symlink => b'2',
        EntryKind::CharacterDevice => b'3',
        EntryKind::BlockDevice => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
    };
    out.extend(block(&path, metadata, kind, &target, size));
    out
}

fn block(path: &[u8], metadata: &Metadata, kind: u8, target: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, length: usize, bytes: &[u8]| {
        let length = length.min(bytes.len());
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    // What does not fit is in the records.
    let octal = |value: u64, digits: usize| {
        let max = 8u64.pow(digits as u32) - 1;
        format!("{:0digits$o}", value.min(max)).into_bytes()
    };
    put(0, 100, path);
    put(100, 7, &octal(metadata.mode.into(), 7));
    put(108, 7, &octal(metadata.owner.into(), 7));
    put(116, 7, &octal(metadata.group.into(), 7));
    put(124, 11, &octal(size, 11));
    put(136, 11, &octal(metadata.modified.seconds.max(0).unsigned_abs(), 11));
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, target);
    put(257, 8, b"ustar\x0000");
    if let Some((major, minor)) = metadata.device {
        put(329, 7, &octal(major.into(), 7));
        put(337, 7, &octal(minor.into(), 7));
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..154].copy_from_slice(&octal(sum, 6));
    block[154] = 0;
    block
}

/// "LENGTH KEY=VALUE\n", where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend(format!("{length} ").as_bytes());
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn time_text(time: Timestamp) -> String {
    let Timestamp { seconds, nanoseconds } = time;
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        // -1.25 s is one second, rounded down, and three quarters.
        (seconds, nanoseconds) if seconds < 0 => {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
        }
        (seconds, nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
    }
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        let nanoseconds = 1_000_000_000 - nanoseconds;
        return Some(Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds });
    }
    Some(Timestamp { seconds, nanoseconds })
}

/// A member, and where its content lies.
#[derive(Debug)]
pub struct Found {
    pub member: Member,
    pub content: u64,
    /// where the next header is
    pub next: u64,
}

fn corrupt(at: u64, problem: &str) -> Failure {
    Failure::Corrupt(format!("tar header at {at}: {problem}"))
}

/// Reads the member whose header (or first record) lies at `at`; none at the archive's end. `read` gives so many bytes,
/// or fewer at the end.
pub fn decode(
    at: u64,
    read: &dyn Fn(u64, usize) -> Result<Vec<u8>, Failure>,
) -> Result<Option<Found>, Failure> {
    let (mut position, mut records) = (at, Vec::new());
    loop {
        let block = read(position, BLOCK)?;
        if block.is_empty() || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let Ok(block) = <[u8; BLOCK]>::try_from(block) else {
            return Err(corrupt(position, "it is cut off"));
        };
        let (kind, size) = check(&block).map_err(|problem| corrupt(position, problem))?;
        let behind = position + BLOCK as u64;
        if kind != b'x' {
            let found = member(&block, kind, size, &records, behind);
            return found.map(Some).map_err(|problem| corrupt(position, problem));
        }
        if size > RECORDS_BYTES_MAX {
            return Err(corrupt(position, "its records are too large"));
        }
        let text = read(behind, size as usize)?;
        records = parse_records(&text).ok_or_else(|| corrupt(position, "its records are none"))?;
        position = behind + size + padding(size);
    }
}

/// Kind and size, where the checksum is right.
fn check(block: &[u8; BLOCK]) -> Result<(u8, u64), &'static str> {
    let mut sum = 0;
    for (at, byte) in block.iter().enumerate() {
        sum += u64::from(if (148..156).contains(&at) { b' ' } else { *byte });
    }
    if octal(&block[148..156]) != Some(sum) {
        return Err("its checksum is wrong");
    }
    Ok((block[156], octal(&block[124..136]).ok_or("its size is no number")?))
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

type Record = (Vec<u8>, Vec<u8>);

fn parse_records(mut text: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !text.is_empty() {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        text = &text[length..];
    }
    Some(records)
}

fn member(
    block: &[u8; BLOCK],
    kind: u8,
    size: u64,
    records: &[Record],
    content: u64,
) -> Result<Found, &'static str> {
    let known = |key: &[u8]| records.iter().rev().find(|(known, _)| known == key);
    let bytes = |key: &[u8], field: &[u8]| match known(key) {
        Some((_, value)) => value.clone(),
        None => field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
    };
    let number = |key: &[u8], field: &[u8]| match known(key) {
        Some((_, value)) => std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
        None => octal(field),
    };
    let target = bytes(b"linkpath", &block[157..257]);
    let kind = match kind {
        b'0' | 0 | b'1' => EntryKind::File,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharacterDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => return Err("its kind is unknown"),
    };
    let is_hard_link = block[156] == b'1';
    let mut metadata = empty_metadata(kind);
    let id = |key: &[u8], field| {
        number(key, field).and_then(|id| u32::try_from(id).ok()).ok_or("an owner is no number")
    };
    metadata.mode = (octal(&block[100..108]).ok_or("its mode is no number")? & 0o7777) as u32;
    metadata.owner = id(b"uid", &block[108..116])?;
    metadata.group = id(b"gid", &block[116..124])?;
    metadata.modified = match known(b"mtime") {
        Some((_, text)) => std::str::from_utf8(text).ok().and_then(parse_time),
        None => octal(&block[136..148])
            .and_then(|seconds| i64::try_from(seconds).ok())
            .map(|seconds| Timestamp { seconds, nanoseconds: 0 }),
    }
    .ok_or("its time is no number")?;
    let size = match known(b"size") {
        Some(_) => number(b"size", &[]).ok_or("its size is no number")?,
        None => size,
    };
    metadata.size = if kind == EntryKind::File && !is_hard_link { size } else { 0 };
    if matches!(kind, EntryKind::CharacterDevice | EntryKind::BlockDevice) {
        let part = |at| octal(&block[at..at + 8]).and_then(|part| u32::try_from(part).ok());
        metadata.device = Some(part(329).zip(part(337)).ok_or("its device is no number")?);
    }
    metadata.link_target = (kind == EntryKind::Symlink).then(|| target.clone());
    metadata.extended = records
        .iter()
        .filter_map(|(key, value)| {
            let name = key.strip_prefix(XATTR)?.to_vec();
            Some(ExtendedAttribute { name, value: value.clone() })
        })
        .collect();
    let end = content.checked_add(metadata.size).and_then(|end| end.checked_add(BLOCK as u64));
    end.ok_or("its size is too large")?;
    let next = content + metadata.size + padding(metadata.size);
    let hard_link = is_hard_link.then(|| plain(&target));
    Ok(Found {
        member: Member { path: plain(&bytes(b"path", &block[..100])), metadata, hard_link },
        content,
        next,
    })
}

/// "./a/b/" as "a/b".
fn plain(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.collect::<Vec<_>>().join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(member: &Member) -> Found {
        let bytes = encode(member);
        assert_eq!(bytes.len() % BLOCK, 0);
        let read = |at: u64, length: usize| {
            let from = &bytes[(at as usize).min(bytes.len())..];
            Ok(from[..length.min(from.len())].to_vec())
        };
        let found = decode(0, &read).unwrap().unwrap();
        assert_eq!(found.content, bytes.len() as u64);
        found
    }

    /// It comes back as it was.
    fn survives(member: &Member) {
        let found = there_and_back(member).member;
        assert_eq!(format!("{found:?}"), format!("{member:?}"));
    }

    fn file(path: &[u8]) -> Member {
        let metadata = Metadata { mode: 0o644, size: 5, ..empty_metadata(EntryKind::File) };
        Member { path: path.to_vec(), metadata, hard_link: None }
    }

    #[test]
    fn members_come_back_as_they_were() {
        let mut plain = file(b"a/b");
        survives(&plain);
        assert_eq!(there_and_back(&plain).next, 1024);
        plain.metadata.mode = 0o7777;
        plain.metadata.owner = u32::MAX;
        plain.metadata.size = 1 << 40;
        for (seconds, nanoseconds) in [(-2, 250_000_000), (-1, 999_999_999), (1 << 40, 1), (7, 0)] {
            plain.metadata.modified = Timestamp { seconds, nanoseconds };
            survives(&plain);
        }
        let value = vec![b'\n', 0, 255];
        plain.metadata.extended = vec![ExtendedAttribute { name: b"user.x".to_vec(), value }];
        plain.path = vec![b'x'; 250];
        survives(&plain);
        for length in 80..120 {
            plain.path = vec![0xff; length];
            survives(&plain);
        }
        let link = Member { hard_link: Some(b"first".to_vec()), ..file(b"second") };
        let found = there_and_back(&link);
        assert_eq!((found.member.hard_link, found.member.metadata.size), (link.hard_link, 0));
        let mut device = file(b"dev");
        device.metadata =
            Metadata { device: Some((8, 17)), ..empty_metadata(EntryKind::BlockDevice) };
        survives(&device);
        let root = Member { metadata: empty_metadata(EntryKind::Directory), ..file(b"") };
        survives(&root);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let whole = encode(&file(b"a"));
        let of = |bytes: &[u8]| {
            let bytes = bytes.to_vec();
            let read = move |at: u64, length: usize| {
                let from = &bytes[(at as usize).min(bytes.len())..];
                Ok(from[..length.min(from.len())].to_vec())
            };
            decode(0, &read)
        };
        assert!(of(&[]).unwrap().is_none() && of(&[0; BLOCK]).unwrap().is_none());
        assert!(of(&whole[..300]).is_err());
        for at in [0, 100, 130, 150, 156] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(of(&damaged).is_err(), "{at}");
        }
        for text in
            [&b"9 a=b\n"[..], b"x a=b\n", b"6 ab\n\n", b"6 a=bc", b"99999999999999999999 a=b\n"]
        {
            assert!(parse_records(text).is_none());
        }
    }
}
