#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| keepwell_test_support::fuzz::request(data));
