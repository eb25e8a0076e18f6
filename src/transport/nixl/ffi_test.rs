//! Holds `ffi.rs` against the header that the crate nixl-sys ships, which this file reads itself.

use std::collections::BTreeMap;
use std::mem::{align_of, offset_of, size_of};
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// `wrapper.h` of the nixl-sys that Cargo.lock selects.
fn header() -> String {
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            // Without it cargo wants the crates of all platforms, which a build does not fetch.
            "--filter-platform",
            &host(),
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo metadata runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let json = String::from_utf8(out.stdout).expect("cargo metadata prints UTF-8");
    let end = json
        .match_indices("\"manifest_path\":\"")
        .map(|(at, key)| {
            let rest = &json[at + key.len()..];
            &rest[..rest.find('"').expect("a closing quote")]
        })
        .find(|path| path.contains("nixl-sys-"))
        .expect("nixl-sys is a dependency");
    let path = PathBuf::from(end).with_file_name("wrapper.h");
    strip_comments(&std::fs::read_to_string(path).expect("wrapper.h"))
}

/// The platform that the compiler builds for unless told otherwise.
fn host() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let out = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(out.stdout).expect("rustc prints UTF-8");
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

fn strip_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(block) = rest.strip_prefix("/*") {
            rest = &block[block.find("*/").map_or(block.len(), |at| at + 2)..];
        } else if rest.starts_with("//") || rest.starts_with('#') {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else {
            let mut chars = rest.chars();
            out.extend(chars.next());
            rest = chars.as_str();
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Our spelling of a C type.
fn rust_type(c: &str) -> String {
    let c = c.replace('*', " * ");
    let mut words: Vec<&str> = c.split_whitespace().collect();
    let constant = words.first() == Some(&"const");
    if constant {
        words.remove(0);
    }
    let stars = words.iter().filter(|w| **w == "*").count();
    words.retain(|w| *w != "*" && *w != "struct");
    let base = match words.join(" ").as_str() {
        "char" => "c_char",
        "void" => "c_void",
        "bool" => "bool",
        "int" => "c_int",
        "unsigned int" => "c_uint",
        "size_t" | "uintptr_t" => "usize",
        "uint16_t" => "u16",
        "uint64_t" => "u64",
        "int64_t" => "i64",
        "nixl_capi_mem_type_t"
        | "nixl_capi_xfer_op_t"
        | "nixl_capi_cost_t"
        | "nixl_capi_thread_sync_t" => "c_int",
        "nixl_capi_agent_config_t" => "AgentConfig",
        "nixl_capi_xfer_telemetry_t" => "*mut XferTelemetry",
        "nixl_capi_agent_t" => "Agent",
        "nixl_capi_params_t" => "Params",
        "nixl_capi_param_iter_t" => "ParamIter",
        "nixl_capi_mem_list_t" => "MemList",
        "nixl_capi_string_list_t" => "StringList",
        "nixl_capi_backend_t" => "Backend",
        "nixl_capi_opt_args_t" => "OptArgs",
        "nixl_capi_xfer_dlist_t" => "XferDlist",
        "nixl_capi_reg_dlist_t" => "RegDlist",
        "nixl_capi_xfer_dlist_handle_t" => "DlistHandle",
        "nixl_capi_xfer_req_t" => "XferReq",
        "nixl_capi_notif_map_t" => "NotifMap",
        "nixl_capi_query_resp_list_t" => "QueryRespList",
        other => panic!("no Rust type is known for the C type {other:?}"),
    };
    // `const T **` points to a pointer to const: only the innermost pointer is const.
    (0..stars).fold(base.to_string(), |inner, level| {
        format!(
            "*{} {inner}",
            if constant && level == 0 {
                "const"
            } else {
                "mut"
            }
        )
    })
}

/// The type of a C parameter or field, without its name.
fn without_name(declaration: &str) -> &str {
    let end = declaration.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
    end.trim()
}

fn parameters(header: &str, function: &str) -> Option<Vec<String>> {
    let at = header.find(&format!(" {function}("))?;
    let before = header[..at].rsplit([';', '{', '}']).next()?.trim();
    assert_eq!(before, "nixl_capi_status_t", "return type of {function}");
    let open = at + function.len() + 2;
    let inside = &header[open..open + header[open..].find(')')?];
    Some(
        inside
            .split(',')
            .map(|p| rust_type(without_name(p.trim())))
            .collect(),
    )
}

fn normal(ty: &str) -> String {
    ty.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace("* ", "*")
}

#[test]
fn functions_agree_with_the_header() {
    let header = header();
    assert!(SIGNATURES.len() > 50);
    for (name, ours) in SIGNATURES {
        let theirs =
            parameters(&header, name).unwrap_or_else(|| panic!("{name} is not in wrapper.h"));
        let ours: Vec<String> = ours.iter().map(|t| normal(t)).collect();
        let theirs: Vec<String> = theirs.iter().map(|t| normal(t)).collect();
        assert_eq!(ours, theirs, "parameters of {name}");
    }
}

#[test]
fn the_check_would_notice_a_difference() {
    let header = "nixl_capi_status_t nixl_capi_x( nixl_capi_agent_t agent, const void* data, size_t len, const char** out);";
    let theirs = parameters(&format!("; {header}"), "nixl_capi_x").expect("found");
    assert_eq!(
        theirs,
        ["Agent", "*const c_void", "usize", "*mut *const c_char"]
    );
    assert_eq!(parameters(&format!("; {header}"), "nixl_capi_y"), None);
}

/// Fields of a C struct as (type, name).
fn fields(header: &str, name: &str) -> Vec<(String, String)> {
    let at = header.find(&format!("struct {name} {{")).expect(name);
    let open = at + header[at..].find('{').expect("a brace") + 1;
    let inside = &header[open..open + header[open..].find('}').expect("a closing brace")];
    inside
        .split(';')
        .map(str::trim)
        .filter(|f| !f.is_empty())
        .map(|f| {
            let ty = without_name(f);
            (rust_type(ty), f[ty.len()..].trim().to_string())
        })
        .collect()
}

/// Offsets, size and alignment by the rules of C for these fields.
fn layout(fields: &[(String, String)]) -> (BTreeMap<String, usize>, usize, usize) {
    let (mut at, mut align) = (0usize, 1usize);
    let mut offsets = BTreeMap::new();
    for (ty, name) in fields {
        let size = match ty.as_str() {
            "bool" => 1,
            "c_int" | "c_uint" => 4,
            "u64" => 8,
            other => panic!("size of {other}"),
        };
        at = at.next_multiple_of(size);
        offsets.insert(name.clone(), at);
        at += size;
        align = align.max(size);
    }
    (offsets, at.next_multiple_of(align), align)
}

macro_rules! assert_layout {
    ($header:expr, $c:literal, $ours:ident { $($field:ident),* $(,)? }) => {
        let theirs = fields(&$header, $c);
        let (offsets, size, align) = layout(&theirs);
        let ours = BTreeMap::from([$((stringify!($field).to_string(), offset_of!($ours, $field))),*]);
        assert_eq!(ours, offsets, $c);
        assert_eq!((size_of::<$ours>(), align_of::<$ours>()), (size, align), $c);
    };
}

#[test]
fn structs_agree_with_the_header() {
    let header = header();
    assert_layout!(
        header,
        "nixl_capi_agent_config_s",
        AgentConfig {
            enable_prog_thread,
            enable_listen_thread,
            listen_port,
            thread_sync,
            num_workers,
            pthr_delay_us,
            lthr_delay_us,
            capture_telemetry,
        }
    );
    assert_layout!(
        header,
        "nixl_capi_xfer_telemetry_s",
        XferTelemetry {
            start_time_us,
            post_duration_us,
            xfer_duration_us,
            total_bytes,
            desc_count,
        }
    );
    for handle in [
        "agent",
        "params",
        "param_iter",
        "mem_list",
        "string_list",
        "backend",
        "opt_args",
        "xfer_dlist",
        "reg_dlist",
        "xfer_dlist_handle",
        "xfer_req",
        "notif_map",
        "query_resp_list",
        "xfer_telemetry",
    ] {
        let typedef = format!("typedef struct nixl_capi_{handle}_s");
        let at = header
            .find(&format!("{typedef}*"))
            .or_else(|| header.find(&format!("{typedef} *")));
        assert!(at.is_some(), "nixl_capi_{handle}_t is a pointer");
    }
}

#[test]
fn constants_agree_with_the_header() {
    let header = header();
    let value = |name: &str| -> i64 {
        let at = header
            .find(&format!("{name} = "))
            .unwrap_or_else(|| panic!("{name} in wrapper.h"));
        let rest = &header[at + name.len() + 3..];
        rest[..rest.find([',', ' ', '}']).expect("an end")]
            .parse()
            .expect(name)
    };
    for (name, ours) in [
        ("NIXL_CAPI_SUCCESS", SUCCESS),
        ("NIXL_CAPI_IN_PROG", IN_PROG),
        ("NIXL_CAPI_ERROR_INVALID_PARAM", INVALID_PARAM),
        ("NIXL_CAPI_ERROR_NO_TELEMETRY", NO_TELEMETRY),
        ("NIXL_CAPI_ERROR_NOT_FOUND", NOT_FOUND),
        ("NIXL_CAPI_THREAD_SYNC_NONE", SYNC_NONE),
        ("NIXL_CAPI_THREAD_SYNC_STRICT", SYNC_STRICT),
        ("NIXL_CAPI_THREAD_SYNC_RW", SYNC_RW),
        ("NIXL_CAPI_MEM_DRAM", crate::memory::MemKind::Dram as i32),
        ("NIXL_CAPI_MEM_VRAM", crate::memory::MemKind::Vram as i32),
        ("NIXL_CAPI_MEM_BLOCK", crate::memory::MemKind::Block as i32),
        (
            "NIXL_CAPI_MEM_OBJECT",
            crate::memory::MemKind::Object as i32,
        ),
        ("NIXL_CAPI_MEM_FILE", crate::memory::MemKind::File as i32),
        ("NIXL_CAPI_XFER_OP_READ", crate::transport::Op::Read as i32),
        (
            "NIXL_CAPI_XFER_OP_WRITE",
            crate::transport::Op::Write as i32,
        ),
    ] {
        assert_eq!(i64::from(ours), value(name), "{name}");
    }
}
