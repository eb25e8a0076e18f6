//! The binary interface: what the shared library is called and exports, and where the fields of the
//! structs are. tests/c/layout.c asserts the same figures on the C side.

use std::collections::BTreeSet;
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};

use kvferry::capi::agent::*;
use kvferry::capi::library::*;
use kvferry::capi::memory::*;
use kvferry::capi::output::*;
use kvferry::capi::side_channel::*;
use kvferry::capi::transfer::*;
use object::read::elf::{Dyn, ElfFile64, FileHeader, SectionHeader};
use object::{Object, ObjectSymbol, elf};

/// The shared library that cargo built along with this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let library = folder.join("libkvferry.so");
    assert!(library.is_file(), "{} is not there", library.display());
    library
}

#[test]
fn exports_are_the_functions_of_the_header() {
    let data = std::fs::read(library()).expect("readable");
    let file = ElfFile64::<object::Endianness>::parse(&*data).expect("an ELF file");
    let exported: BTreeSet<String> = file
        .dynamic_symbols()
        .filter(|s| s.is_definition())
        .map(|s| s.name().expect("UTF-8").to_owned())
        .collect();
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/kvferry.h");
    let header = std::fs::read_to_string(header).expect("committed");
    // Declarations that are not `static inline`, which is C that programs compile for themselves.
    let declared: BTreeSet<String> = header
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase()) && l.contains('('))
        .filter(|l| !l.starts_with("static ") && !l.starts_with("typedef "))
        .filter_map(|l| {
            l.split('(')
                .next()?
                .split([' ', '*'])
                .next_back()
                .map(str::to_owned)
        })
        .collect();
    assert!(declared.len() > 50, "{declared:?}");
    assert_eq!(exported, declared);
}

#[test]
fn soname_carries_the_abi_version() {
    let data = std::fs::read(library()).expect("readable");
    let header = elf::FileHeader64::<object::Endianness>::parse(&*data).expect("an ELF file");
    let endian = header.endian().expect("known");
    let sections = header.sections(endian, &*data).expect("sections");
    let (dynamic, link) = sections
        .dynamic(endian, &*data)
        .expect("valid")
        .expect("shared library");
    let strings = sections.strings(endian, &*data, link).expect("strings");
    let find = |tag: u32| dynamic.iter().find(|d| d.tag32(endian) == Some(tag));
    let soname = find(elf::DT_SONAME)
        .expect("a SONAME")
        .string(endian, strings)
        .expect("a string");
    let expected = format!("libkvferry.so.{KVF_ABI_VERSION}");
    assert_eq!(std::str::from_utf8(soname), Ok(expected.as_str()));
    // Threads of the library may be running when a program calls dlclose().
    let flags = find(elf::DT_FLAGS_1).map_or(0, |d| d.val32(endian).unwrap_or(0));
    assert_ne!(flags & elf::DF_1_NODELETE, 0, "not linked with -z nodelete");
    let text = sections
        .iter()
        .find(|s| sections.section_name(endian, s) == Ok(b".text"));
    assert_ne!(text.expect("code").sh_size(endian), 0);
}

/// `layout!(type, size, align; field offset, ...)`
macro_rules! layout {
    ($t:ty, $size:expr, $align:expr; $($field:ident $offset:expr),+) => {
        const _: () = {
            assert!(size_of::<$t>() == $size && align_of::<$t>() == $align);
            $(assert!(offset_of!($t, $field) == $offset);)+
        };
    };
}

layout!(kvf_agent, 8, 8; id 0);
layout!(kvf_desc_list, 8, 8; id 0);
layout!(kvf_transfer, 8, 8; id 0);
layout!(kvf_side_channel, 8, 8; id 0);
layout!(kvf_buffer, 16, 8; data 0, len 8);
layout!(kvf_string_list, 16, 8; items 0, len 8);
layout!(kvf_param, 16, 8; key 0, value 8);
layout!(kvf_param_list, 16, 8; items 0, len 8);
layout!(kvf_notification, 24, 8; from 0, payload 8, payload_len 16);
layout!(kvf_notification_list, 16, 8; items 0, len 8);
layout!(kvf_query_result, 24, 8; found 0, params 8);
layout!(kvf_query_list, 16, 8; items 0, len 8);
layout!(kvf_mem_desc, 24, 8; addr 0, len 8, device 16);
layout!(kvf_strided_desc, 40, 8; addr 0, len 8, device 16, stride 24, count 32);
layout!(kvf_reg_desc, 40, 8; addr 0, len 8, device 16, meta 24, meta_len 32);
layout!(kvf_backend, 24, 8; name 0, params 8, params_len 16);
layout!(kvf_agent_options, 88, 8;
    struct_size 0, progress 4, name 8, transport 16, nixl_library 24, nixl_plugin_dir 32,
    backends 40, backends_len 48, progress_delay_us 56, sync_mode 64, worker_threads 68,
    copy_threads 72, drain_timeout_ms 76, listen_port 80, listen 82, telemetry 83,
    no_default_backend 84, reserved 85);
layout!(kvf_transfer_options, 40, 8;
    struct_size 0, skip_merge 4, has_notification 5, reserved 6, notification 8,
    notification_len 16, backends 24, backends_len 32);
layout!(kvf_transfer_telemetry, 40, 8;
    start_time_us 0, post_duration_us 8, transfer_duration_us 16, total_bytes 24, descriptors 32);
layout!(kvf_transfer_cost, 24, 8; duration_us 0, error_margin_us 8, method 16, reserved 20);
layout!(kvf_side_channel_options, 48, 8;
    struct_size 0, max_connections 4, kind 8, host 16, max_message_bytes 24, timeout_ms 32,
    port 40, reserved 42);
