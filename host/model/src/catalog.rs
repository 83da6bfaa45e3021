//! `catalog.pcat1`: the names in a snapshot's archives. Spec: catalog.md.
//!
//! Directory blocks stand in the file children first; an 8-byte pointer to the root ends it. The
//! writer keeps the tables of open directories only.

pub const MAGIC: [u8; 8] = [0x91, 0xfd, 0x60, 0xf9, 0xc4, 0x67, 0x58, 0xd5];
const NAME_BYTES_MAX: usize = 4095;
/// A larger table is meant to fill memory.
const TABLE_BYTES_MAX: u64 = 1 << 30;
/// Deeper trees are not followed: no file system holds one.
const DEPTH_MAX: usize = 4096;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogKind {
    /// position of its block
    Directory {
        block: u64,
    },
    File {
        size: u64,
        modified: i64,
    },
    Symlink,
    HardLink,
    BlockDevice,
    CharacterDevice,
    Fifo,
    Socket,
}

impl CatalogKind {
    /// The letter of the format and of listings.
    pub fn letter(&self) -> u8 {
        match self {
            Self::Directory { .. } => b'd',
            Self::File { .. } => b'f',
            Self::Symlink => b'l',
            Self::HardLink => b'h',
            Self::BlockDevice => b'b',
            Self::CharacterDevice => b'c',
            Self::Fifo => b'p',
            Self::Socket => b's',
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    pub name: Vec<u8>,
    pub kind: CatalogKind,
}

/// Why bytes are no catalog, or calls don't make one.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("got unexpected magic number for catalog")]
    Magic,
    #[error("catalog is damaged at byte {at}: {problem}")]
    Corrupt { at: u64, problem: &'static str },
    #[error("unable to finish catalog at level {0}")]
    Unfinished(usize),
    #[error("catalog name is empty, too long or holds NUL or '/'")]
    Name,
    #[error("reading the catalog")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn corrupt(at: u64, problem: &'static str) -> CatalogError {
    CatalogError::Corrupt { at, problem }
}

struct Level {
    name: Vec<u8>,
    entries: Vec<u8>,
    /// for each sub-directory: where in `entries` its offset belongs, and its block
    count: u64,
    blocks: Vec<(usize, u64)>,
}

/// Writes a catalog piece by piece.
pub struct CatalogWriter {
    position: u64,
    levels: Vec<Level>,
    out: Vec<u8>,
}

impl Default for CatalogWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl CatalogWriter {
    pub fn new() -> Self {
        let mut writer = Self { position: 0, levels: Vec::new(), out: Vec::new() };
        writer.emit(&MAGIC);
        writer.push(Vec::new());
        writer
    }

    fn emit(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        self.out.extend(bytes);
    }

    fn push(&mut self, name: Vec<u8>) {
        self.levels.push(Level { name, entries: Vec::new(), count: 0, blocks: Vec::new() });
    }

    /// Bytes made since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Number of bytes that wait in [`Self::take`].
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    pub fn enter(&mut self, name: &[u8]) -> Result<(), CatalogError> {
        check_name(name)?;
        self.push(name.to_vec());
        Ok(())
    }

    /// Ends the directory entered last.
    pub fn leave(&mut self) -> Result<(), CatalogError> {
        if self.levels.len() < 2 {
            return Err(CatalogError::Unfinished(self.levels.len()));
        }
        let Some(level) = self.levels.pop() else { return Ok(()) };
        let name = level.name.clone();
        let block = self.write_block(level);
        if let Some(parent) = self.levels.last_mut() {
            parent.count += 1;
            push_head(&mut parent.entries, b'd', &name);
            parent.blocks.push((parent.entries.len(), block));
        }
        Ok(())
    }

    /// Adds an entry that is not a directory.
    pub fn add(&mut self, name: &[u8], kind: &CatalogKind) -> Result<(), CatalogError> {
        check_name(name)?;
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        level.count += 1;
        push_head(&mut level.entries, kind.letter(), name);
        if let CatalogKind::File { size, modified } = kind {
            push_unsigned(&mut level.entries, *size);
            push_signed(&mut level.entries, *modified);
        }
        Ok(())
    }

    /// Ends the catalog. All directories must have been left.
    pub fn finish(&mut self) -> Result<(), CatalogError> {
        if self.levels.len() != 1 {
            return Err(CatalogError::Unfinished(self.levels.len()));
        }
        if let Some(root) = self.levels.pop() {
            let block = self.write_block(root);
            self.emit(&block.to_le_bytes());
        }
        Ok(())
    }

    /// How many directories are open, the root included.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    fn write_block(&mut self, level: Level) -> u64 {
        let start = self.position;
        let mut table = Vec::with_capacity(level.entries.len() + 10 * level.blocks.len() + 10);
        push_unsigned(&mut table, level.count);
        let mut copied = 0;
        for (at, block) in level.blocks {
            table.extend(&level.entries[copied..at]);
            push_unsigned(&mut table, start - block);
            copied = at;
        }
        table.extend(&level.entries[copied..]);
        let mut length = Vec::new();
        push_unsigned(&mut length, table.len() as u64);
        self.emit(&length);
        self.emit(&table);
        start
    }
}

fn check_name(name: &[u8]) -> Result<(), CatalogError> {
    let legal = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.contains(&0)
        && !name.contains(&b'/');
    if legal { Ok(()) } else { Err(CatalogError::Name) }
}

fn push_head(out: &mut Vec<u8>, letter: u8, name: &[u8]) {
    out.push(letter);
    push_unsigned(out, name.len() as u64);
    out.extend(name);
}

fn push_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Negative numbers: all groups of the magnitude marked, then a zero byte.
fn push_signed(out: &mut Vec<u8>, value: i64) {
    if value >= 0 {
        return push_unsigned(out, value as u64);
    }
    let mut magnitude = value.unsigned_abs();
    while magnitude > 0 {
        out.push(magnitude as u8 | 0x80);
        magnitude >>= 7;
    }
    out.push(0);
}

/// Is called with the path (names from the root) and entry of everything in a catalog.
pub type Visit<'a> = dyn FnMut(&[Vec<u8>], &CatalogEntry) -> Result<(), CatalogError> + 'a;

/// Where a catalog's bytes come from.
pub trait CatalogBytes {
    fn size(&self) -> u64;
    /// Exactly `length` bytes; the caller stays within the size.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, CatalogError>;
}

impl CatalogBytes for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, CatalogError> {
        let bytes = usize::try_from(offset).ok().and_then(|from| self.get(from..from + length));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| corrupt(offset, "beyond the end"))
    }
}

/// Reads a catalog. Every offset is hostile.
pub struct CatalogReader<B> {
    bytes: B,
}

impl<B: CatalogBytes> CatalogReader<B> {
    pub fn open(bytes: B) -> Result<Self, CatalogError> {
        if bytes.size() < 18 || bytes.read(0, 8)? != MAGIC {
            return Err(CatalogError::Magic);
        }
        Ok(Self { bytes })
    }

    /// Position of the root block.
    pub fn root(&self) -> Result<u64, CatalogError> {
        let end = self.bytes.size();
        let pointer = self.bytes.read(end - 8, 8)?;
        let mut word = [0; 8];
        word.copy_from_slice(&pointer);
        Ok(u64::from_le_bytes(word))
    }

    /// Entries of the directory whose block lies at `block`.
    pub fn directory(&self, block: u64) -> Result<Vec<CatalogEntry>, CatalogError> {
        let end = self.bytes.size() - 8;
        if block < 8 || block >= end {
            return Err(corrupt(block, "directory lies outside"));
        }
        let head = self.bytes.read(block, (end - block).min(10) as usize)?;
        let mut cursor = Cursor { bytes: &head, at: block };
        let length = cursor.unsigned()?;
        if length == 0 {
            return Err(corrupt(block, "got small directory size 0"));
        }
        let start = cursor.at;
        if length > TABLE_BYTES_MAX || length > end - start {
            return Err(corrupt(block, "directory reaches beyond the end"));
        }
        let table = self.bytes.read(start, length as usize)?;
        let mut cursor = Cursor { bytes: &table, at: start };
        let count = cursor.unsigned()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(cursor.entry(block)?);
        }
        if !cursor.bytes.is_empty() {
            return Err(corrupt(cursor.at, "unable to parse whole catalog data block"));
        }
        Ok(entries)
    }

    /// Calls `visit` with the path (names from the root) of every entry, depth first, in order.
    pub fn walk(&self, visit: &mut Visit<'_>) -> Result<(), CatalogError> {
        let mut path: Vec<Vec<u8>> = Vec::new();
        let mut open = vec![self.directory(self.root()?)?.into_iter()];
        while let Some(entries) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                path.pop();
                continue;
            };
            path.push(entry.name.clone());
            visit(&path, &entry)?;
            match entry.kind {
                CatalogKind::Directory { block } if open.len() < DEPTH_MAX => {
                    open.push(self.directory(block)?.into_iter());
                }
                CatalogKind::Directory { block } => return Err(corrupt(block, "nested too deep")),
                _ => {
                    path.pop();
                }
            }
        }
        Ok(())
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Result<u8, CatalogError> {
        let (first, rest) =
            self.bytes.split_first().ok_or_else(|| corrupt(self.at, "ends too early"))?;
        self.bytes = rest;
        self.at += 1;
        Ok(*first)
    }

    fn unsigned(&mut self) -> Result<u64, CatalogError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(corrupt(self.at, "decode_u64 failed - missing end marker"))
    }

    fn signed(&mut self) -> Result<i64, CatalogError> {
        let mut value = 0u64;
        for shift in (0..77).step_by(7) {
            let byte = self.byte()?;
            if byte == 0 {
                return Ok(if shift == 0 { 0 } else { (value as i64).wrapping_neg() });
            }
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value as i64);
            }
        }
        Err(corrupt(self.at, "decode_i64 failed - missing end marker"))
    }

    fn entry(&mut self, block: u64) -> Result<CatalogEntry, CatalogError> {
        let letter = self.byte()?;
        let length = self.unsigned()?;
        if length > NAME_BYTES_MAX as u64 {
            return Err(corrupt(self.at, "directory entry name too long"));
        }
        let name = self.bytes.get(..length as usize);
        let name = name.ok_or_else(|| corrupt(self.at, "ends too early"))?.to_vec();
        check_name(&name).map_err(|_| corrupt(self.at, "entry has an illegal name"))?;
        self.bytes = &self.bytes[length as usize..];
        self.at += length;
        let kind = match letter {
            b'd' => {
                let distance = self.unsigned()?;
                let child = block.checked_sub(distance).filter(|child| *child < block);
                let child = child.ok_or_else(|| corrupt(self.at, "got wrong directory offset"))?;
                CatalogKind::Directory { block: child }
            }
            b'f' => CatalogKind::File { size: self.unsigned()?, modified: self.signed()? },
            b'l' => CatalogKind::Symlink,
            b'h' => CatalogKind::HardLink,
            b'b' => CatalogKind::BlockDevice,
            b'c' => CatalogKind::CharacterDevice,
            b'p' => CatalogKind::Fifo,
            b's' => CatalogKind::Socket,
            _ => return Err(corrupt(self.at, "entry is of no known kind")),
        };
        Ok(CatalogEntry { name, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "91fd60f9c46758d5\
        0a016601780580e2cfaa06\
        1203660161ac0282006c026c6e64037375620b\
        1201640e726f6f742e707861722e6469647813\
        2600000000000000";

    #[test]
    fn catalog_bytes_never_change() {
        let mut writer = CatalogWriter::new();
        writer.enter(b"root.pxar.didx").unwrap();
        writer.add(b"a", &CatalogKind::File { size: 300, modified: -2 }).unwrap();
        writer.add(b"ln", &CatalogKind::Symlink).unwrap();
        writer.enter(b"sub").unwrap();
        let file = CatalogKind::File { size: 5, modified: 1_700_000_000 };
        writer.add(b"x", &file).unwrap();
        writer.leave().unwrap();
        writer.leave().unwrap();
        writer.finish().unwrap();
        assert_eq!(hex::encode(writer.take()), EXAMPLE);
        let mut empty = CatalogWriter::new();
        empty.finish().unwrap();
        assert_eq!(hex::encode(empty.take()), "91fd60f9c46758d501000800000000000000");
    }

    /// Path and letter of each entry.
    type Listing = Vec<(Vec<Vec<u8>>, u8)>;

    fn listing(bytes: &[u8]) -> Result<Listing, CatalogError> {
        let mut found = Vec::new();
        CatalogReader::open(bytes)?.walk(&mut |path, entry| {
            found.push((path.to_vec(), entry.kind.letter()));
            if found.len() > 10_000 { Err(corrupt(0, "endless")) } else { Ok(()) }
        })?;
        Ok(found)
    }

    #[test]
    fn the_example_reads_in_order() {
        let found = listing(&hex::decode(EXAMPLE).unwrap()).unwrap();
        let letters: Vec<u8> = found.iter().map(|(_, letter)| *letter).collect();
        assert_eq!(letters, b"dfldf");
        assert_eq!(found[4].0.join(&b'/'), b"root.pxar.didx/sub/x");
    }

    #[test]
    fn numbers_are_written_as_the_specification_says() {
        let cases = [
            (0i64, "00"),
            (1, "01"),
            (-1, "8100"),
            (127, "7f"),
            (128, "8001"),
            (-128, "808100"),
            (300, "ac02"),
            (-300, "ac8200"),
        ];
        for (value, text) in cases {
            let mut out = Vec::new();
            push_signed(&mut out, value);
            assert_eq!(hex::encode(out), text);
        }
    }

    proptest! {
        #[test]
        fn numbers_read_as_they_were_written(value in any::<i64>(), other in any::<u64>()) {
            let mut out = Vec::new();
            push_signed(&mut out, value);
            push_unsigned(&mut out, other);
            push_signed(&mut out, i64::MIN);
            let mut cursor = Cursor { bytes: &out, at: 0 };
            prop_assert_eq!(cursor.signed().unwrap(), value);
            prop_assert_eq!(cursor.unsigned().unwrap(), other);
            prop_assert_eq!(cursor.signed().unwrap(), i64::MIN);
        }

        #[test]
        fn trees_read_as_they_were_written(steps in prop::collection::vec((0u8..4, "[a-z]{1,9}"), 0..80)) {
            let mut writer = CatalogWriter::new();
            let mut path: Vec<Vec<u8>> = Vec::new();
            let mut expected = Vec::new();
            for (step, name) in steps {
                let name = name.into_bytes();
                match step {
                    0 => {
                        writer.enter(&name).unwrap();
                        path.push(name);
                        expected.push((path.clone(), b'd'));
                    }
                    1 if !path.is_empty() => {
                        writer.leave().unwrap();
                        path.pop();
                    }
                    _ => {
                        writer.add(&name, &CatalogKind::File { size: 7, modified: 9 }).unwrap();
                        let mut at = path.clone();
                        at.push(name);
                        expected.push((at, b'f'));
                    }
                }
            }
            for _ in path {
                writer.leave().unwrap();
            }
            writer.finish().unwrap();
            let mut read = listing(&writer.take()).unwrap();
            // A directory stands in its parent where it was left, not where it was entered.
            read.sort();
            expected.sort();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(middle in prop::collection::vec(any::<u8>(), 2..99), at in 0u64..120) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(middle);
            bytes.extend(at.to_le_bytes());
            let _ = listing(&bytes);
        }
    }
}
