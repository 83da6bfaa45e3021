//! Names of tasks: shared/spec/protocol.md §7.

use std::fmt;
use std::str::FromStr;

/// `UPID:node:pid:pstart:task:start:type:id:user:`: one run of a task on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upid {
    pub node: String,
    pub pid: u32,
    /// when the process began, in clock ticks since the host did
    pub process_start: u64,
    /// counts the tasks of the process
    pub task: u64,
    /// seconds since the epoch
    pub start: i64,
    /// such as `garbage_collection`
    pub kind: String,
    /// what the task works on, unescaped
    pub id: Option<String>,
    pub user: String,
}

/// Text that should name a task.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not the name of a task (UPID:…)")]
pub struct UpidError {
    given: String,
}

/// As systemd escapes unit names: `/` is `-`, and what is not a letter, digit, `_` or `.` is
/// `\xNN`, as is a leading dot.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if at == 0 => escaped += "\\x2e",
            b'_' | b'.' => escaped.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => escaped.push(char::from(byte)),
            _ => escaped += &format!("\\x{byte:02x}"),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        match first {
            b'-' => bytes.push(b'/'),
            b'\\' => {
                let (code, behind) = rest.strip_prefix(b"x")?.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?);
                rest = behind;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, pid, process_start, task, start, kind, id, user } = self;
        let id = id.as_deref().map(escape).unwrap_or_default();
        write!(
            f,
            "UPID:{node}:{pid:08X}:{process_start:08X}:{task:08X}:{start:08X}:{kind}:{id}:{user}:"
        )
    }
}

impl FromStr for Upid {
    type Err = UpidError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        parse(given).ok_or_else(|| UpidError { given: given.to_owned() })
    }
}

fn parse(given: &str) -> Option<Upid> {
    let fields: Vec<&str> = given.strip_prefix("UPID:")?.strip_suffix(':')?.split(':').collect();
    let [node, pid, process_start, task, start, kind, id, user] = fields[..] else { return None };
    let hex = |text: &str, longest: usize| {
        let fits = (8..=longest).contains(&text.len());
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if fits && digits { u64::from_str_radix(text, 16).ok() } else { None }
    };
    let word = |text: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        (!text.is_empty() && text.bytes().all(legal)).then(|| text.to_owned())
    };
    Some(Upid {
        node: word(node)?,
        pid: u32::try_from(hex(pid, 8)?).ok()?,
        process_start: hex(process_start, 9)?,
        task: hex(task, 16)?,
        start: i64::try_from(hex(start, 8)?).ok()?,
        kind: word(kind)?,
        id: if id.is_empty() { None } else { Some(unescape(id)?) },
        user: Some(user).filter(|user| !user.is_empty())?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let text =
            "UPID:pbs:000003E8:00001A2B:00000005:65A1B2C3:garbage_collection:store1:root@pam:";
        let upid: Upid = text.parse().unwrap();
        assert_eq!((upid.pid, upid.task, upid.start), (1000, 5, 0x65a1_b2c3));
        assert_eq!((upid.id.as_deref(), upid.user.as_str()), (Some("store1"), "root@pam"));
        assert_eq!(upid.to_string(), text);
        let of_group = Upid { id: Some("s1:host/web-1".into()), ..upid.clone() };
        assert!(of_group.to_string().contains(":s1\\x3ahost-web\\x2d1:"));
        assert_eq!(of_group.to_string().parse(), Ok(of_group));
        for bad in ["", "UPID:", &text[..text.len() - 1], &text.replace("000003E8", "3E8")] {
            assert!(bad.parse::<Upid>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_id_comes_back(id in "\\PC{1,40}", task in any::<u32>()) {
            let upid = Upid {
                node: "n".into(),
                pid: 1,
                process_start: 2,
                task: task.into(),
                start: 3,
                kind: "verify".into(),
                id: Some(id),
                user: "a@pam".into(),
            };
            prop_assert_eq!(upid.to_string().parse(), Ok(upid));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "(UPID:)?\\PC{0,80}") {
            let _ = text.parse::<Upid>();
        }
    }
}
