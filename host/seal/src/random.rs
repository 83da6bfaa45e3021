//! Random bytes of the operating system.

/// Random bytes. The operating system always has some: where it doesn't, nothing can go on.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[allow(clippy::expect_used, reason = "a key or vector that is not random would be worse")]
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
