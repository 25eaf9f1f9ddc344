#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lineradb_lsm::fuzzing::Target::Blob.run(bytes));
