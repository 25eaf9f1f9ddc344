#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lineradb_lsm::fuzzing::Target::Compressed.run(bytes));
