//! Where `libnixl_capi.so` may be: candidates in the order in which they are tried.
//!
//! Pure look-ups: nothing here opens a library or changes the process.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// File name and SONAME of NIXL's C library.
pub const LIBRARY: &str = "libnixl_capi.so";

/// Names a library to use when the agent's options do not.
pub const ENV_LIBRARY: &str = "KVF_NIXL_LIBRARY";

/// Which rule a candidate came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The agent's options.
    Option,
    /// The environment variable [`ENV_LIBRARY`].
    Environment,
    /// Beside a NIXL library that is mapped into the process.
    Mapped,
    /// In a Python wheel that the running interpreter or the active environment would import.
    Wheel,
    /// By name, wherever the system's loader finds it.
    System,
}

impl Source {
    /// A phrase for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Source::Option => "the agent's options",
            Source::Environment => "the environment variable KVF_NIXL_LIBRARY",
            Source::Mapped => "a NIXL library already in the process",
            Source::Wheel => "a Python wheel",
            Source::System => "the system's loader path",
        }
    }
}

/// Paths of the files mapped into this process, each once.
pub fn mapped_files() -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    maps.split(|b| *b == b'\n')
        .filter_map(|line| Some(&line[line.iter().position(|b| *b == b'/')?..]))
        .filter(|path| seen.insert(path.to_vec()))
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}

/// The C library beside each NIXL library among these files.
pub fn beside_mapped(mapped: &[PathBuf]) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for file in mapped {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name == "libnixl.so" || name == LIBRARY {
            let path = file.with_file_name(LIBRARY);
            if !out.contains(&path) {
                out.push(path);
            }
        }
    }
    out
}

/// The C library of every NIXL wheel in the folders that Python would import from.
pub fn in_wheels(mapped: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let folders = package_folders(mapped);
    // A process that has CUDA 13 loaded wants the wheel built for it; otherwise the older one
    // works with more drivers.
    let cuda13 = mapped.iter().any(|p| {
        p.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("libcudart.so.13"))
    });
    let found = folders
        .iter()
        .flat_map(|folder| wheels_in(folder, cuda13))
        .collect();
    (found, folders)
}

/// `.nixl_cu12.mesonpy.libs` and its like in one folder, the preferred one first.
fn wheels_in(folder: &Path, cuda13: bool) -> Vec<PathBuf> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(".nixl") && name.ends_with(".mesonpy.libs"))
        .collect();
    names.sort_by_key(|name| (name.contains("cu13") != cuda13, name.clone()));
    names
        .into_iter()
        .map(|name| folder.join(name).join(LIBRARY))
        .filter(|path| path.is_file())
        .collect()
}

/// `site-packages` and `dist-packages` folders of this process, the likeliest first.
fn package_folders(mapped: &[PathBuf]) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        if path.is_dir() && !out.contains(&path) {
            out.push(path);
        }
    };
    // What the interpreter has imported from is what it would import NIXL from.
    for file in mapped {
        if let Some(folder) = file.ancestors().find(|a| is_package_folder(a)) {
            add(folder.to_path_buf());
        }
    }
    for prefix in prefixes(mapped) {
        for folder in folders_under(&prefix) {
            add(folder);
        }
    }
    if let Some(paths) = env::var_os("PYTHONPATH") {
        env::split_paths(&paths).for_each(&mut add);
    }
    if running_python(mapped) {
        if let Some(home) = env::var_os("HOME") {
            folders_under(&Path::new(&home).join(".local"))
                .into_iter()
                .for_each(&mut add);
        }
    }
    out
}

fn is_package_folder(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|n| n == "site-packages" || n == "dist-packages")
}

/// Whether this process is, or embeds, a Python interpreter.
fn running_python(mapped: &[PathBuf]) -> bool {
    let is_python = |p: &Path| {
        p.file_name().is_some_and(|n| {
            let n = n.to_string_lossy();
            n.starts_with("python3") || n == "python" || n.starts_with("libpython3")
        })
    };
    mapped.iter().any(|p| is_python(p))
}

/// Installation prefixes of the interpreter and of the active environment.
fn prefixes(mapped: &[PathBuf]) -> Vec<PathBuf> {
    let mut out = Vec::new();
    if running_python(mapped) {
        // The interpreter of a virtual environment is a link to the real one, so the name that it
        // was started by tells more than the file that runs.
        if let Some(program) = command_name().and_then(|name| resolve_program(&name)) {
            out.extend(
                program
                    .parent()
                    .and_then(Path::parent)
                    .map(Path::to_path_buf),
            );
        }
    }
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        out.extend(
            env::var_os(variable)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from),
        );
    }
    if running_python(mapped) {
        if let Ok(program) = fs::read_link("/proc/self/exe") {
            out.extend(
                program
                    .parent()
                    .and_then(Path::parent)
                    .map(Path::to_path_buf),
            );
        }
        for file in mapped {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libpython3") {
                out.extend(file.ancestors().nth(2).map(Path::to_path_buf));
            }
        }
        out.push(PathBuf::from("/usr/local"));
    }
    out
}

/// Package folders of a prefix: `lib/python3.N/site-packages` and Debian's variants.
fn folders_under(prefix: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for lib in ["lib", "lib64"] {
        let lib = prefix.join(lib);
        let mut versions: Vec<PathBuf> = fs::read_dir(&lib)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("python3"))
            })
            .collect();
        versions.sort();
        for version in versions.iter().rev() {
            out.push(version.join("site-packages"));
            out.push(version.join("dist-packages"));
        }
    }
    out
}

/// The name that this process was started by.
fn command_name() -> Option<PathBuf> {
    let line = fs::read("/proc/self/cmdline").ok()?;
    let first = line.split(|b| *b == 0).next()?;
    (!first.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(first)))
}

/// The file that a program name stands for, links left as they are.
fn resolve_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return Some(env::current_dir().ok()?.join(name));
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

/// Version of the wheel that a library belongs to, from the `dist-info` folder next to it.
pub fn wheel_version(library: &Path) -> Option<String> {
    let libs = library.parent()?;
    // `.nixl_cu12.mesonpy.libs` belongs to `nixl_cu12-1.5.1.dist-info`.
    let package = libs
        .file_name()?
        .to_str()?
        .strip_prefix('.')?
        .strip_suffix(".mesonpy.libs")?;
    fs::read_dir(libs.parent()?)
        .ok()?
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name
                .strip_prefix(package)?
                .strip_prefix('-')?
                .strip_suffix(".dist-info")?;
            Some(version.to_string())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = env::temp_dir().join(format!("kvferry-search-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a scratch folder");
        dir
    }

    fn wheel(folder: &Path, package: &str, version: &str) -> PathBuf {
        let libs = folder.join(format!(".{package}.mesonpy.libs"));
        fs::create_dir_all(&libs).expect("libs");
        fs::create_dir_all(folder.join(format!("{package}-{version}.dist-info"))).expect("info");
        fs::write(libs.join(LIBRARY), b"").expect("library");
        libs.join(LIBRARY)
    }

    #[test]
    fn a_mapped_file_leads_to_the_wheel_beside_it() {
        let root = scratch("mapped");
        let site = root.join("lib/python3.12/site-packages");
        fs::create_dir_all(site.join("numpy/core")).expect("numpy");
        let cu12 = wheel(&site, "nixl_cu12", "1.5.1");
        let cu13 = wheel(&site, "nixl_cu13", "1.5.2");
        let mut mapped = vec![site.join("numpy/core/_multiarray.so")];
        let (found, folders) = in_wheels(&mapped);
        assert!(folders.contains(&site));
        assert_eq!(found[..2], [cu12.clone(), cu13.clone()]);
        mapped.push(PathBuf::from("/opt/libcudart.so.13"));
        assert_eq!(in_wheels(&mapped).0[..2], [cu13.clone(), cu12.clone()]);
        assert_eq!(wheel_version(&cu12).as_deref(), Some("1.5.1"));
        assert_eq!(wheel_version(&cu13).as_deref(), Some("1.5.2"));
        assert_eq!(wheel_version(Path::new("/usr/lib/libnixl_capi.so")), None);
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn a_mapped_nixl_library_names_its_neighbour_once() {
        let mapped = [
            "/a/libnixl.so",
            "/a/libnixl_capi.so",
            "/b/libnixl_common.so",
            "/c/libnixl.so",
        ];
        let mapped: Vec<PathBuf> = mapped.iter().map(PathBuf::from).collect();
        let expected = ["/a/libnixl_capi.so", "/c/libnixl_capi.so"].map(PathBuf::from);
        assert_eq!(beside_mapped(&mapped), expected);
    }

    #[test]
    fn this_process_has_mapped_files() {
        let exe = fs::read_link("/proc/self/exe").expect("exe");
        assert!(mapped_files().contains(&exe));
    }
}
