//! The one recipe for the kernel programs' object. `dataplane/build/main.rs` runs it for every build of the agent, and
//! `cargo xtask bpf` includes this file as a module; it uses nothing but the standard library for that reason.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The version of bpf-linker that is looked for in the cache. It must know the LLVM of the compiler.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// The target the programs are built for; every machine we run on is little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// Name of the program crate's binary, which is the object.
const BINARY: &str = "bulkhead-bpf";
/// What to do when no tool chain can build the object.
const REMEDY: &str = "run `cargo xtask setup`, or set BULKHEAD_BPF_OBJECT to a built object";

/// What to build and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The checkout: the folder that holds `bpf/` and `verdict/`.
    pub(crate) root: &'a Path,
    /// Cargo's target directory of the inner build. It must differ from the outer one, which is locked; a stable one
    /// makes an unchanged build quick.
    pub(crate) target_dir: &'a Path,
    /// Architecture the object will run on, as in `CARGO_CFG_TARGET_ARCH`.
    pub(crate) arch: &'a str,
}

/// A built object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// The ELF file.
    pub(crate) path: PathBuf,
    /// What built it: `prebuilt`, `rustup nightly` or `/usr/bin/rustc`.
    pub(crate) toolchain: String,
}

/// Why there is no object; each says what to do.
#[derive(Debug)]
pub(crate) enum RecipeError {
    /// `BULKHEAD_BPF_OBJECT` names no file.
    NoPrebuilt(PathBuf),
    /// No compiler with library sources.
    NoToolchain,
    /// No bpf-linker.
    NoLinker(PathBuf),
    /// The inner cargo could not be started.
    Spawn(PathBuf, std::io::Error),
    /// The inner cargo failed; its own output says why.
    Build(String),
    /// The inner cargo succeeded and left no object.
    NoObject(PathBuf),
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPrebuilt(path) => write!(f, "BULKHEAD_BPF_OBJECT names {}, which is no file", path.display()),
            Self::NoToolchain => write!(
                f,
                "no compiler for the kernel programs: neither rustup's nightly nor /usr/bin/rustc has the library \
                 sources (rust-src); {REMEDY}"
            ),
            Self::NoLinker(path) => {
                write!(
                    f,
                    "no bpf-linker for the kernel programs, in PATH or at {}; {REMEDY}",
                    path.display()
                )
            }
            Self::Spawn(program, error) => write!(f, "cannot start {}: {error}", program.display()),
            Self::Build(toolchain) => {
                write!(
                    f,
                    "the kernel programs do not build with {toolchain}; cargo's output above says why"
                )
            }
            Self::NoObject(path) => {
                write!(
                    f,
                    "the kernel programs were built, but {} is missing: is the binary renamed?",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for RecipeError {}

/// Files and folders (relative to the checkout) whose change asks for a new build.
pub(crate) const INPUTS: [&str; 6] = [
    "bpf/src",
    "bpf/Cargo.toml",
    "bpf/Cargo.lock",
    "verdict/src",
    "verdict/Cargo.toml",
    "dataplane/build/recipe.rs",
];

/// Environment variables whose change asks for a new build.
pub(crate) const VARIABLES: [&str; 2] = ["BULKHEAD_BPF_OBJECT", "BULKHEAD_CACHE"];

/// Builds the object, or finds the prebuilt one.
pub(crate) fn build(request: Request<'_>) -> Result<Object, RecipeError> {
    if let Some(path) = env::var_os("BULKHEAD_BPF_OBJECT").map(PathBuf::from) {
        if !path.is_file() {
            return Err(RecipeError::NoPrebuilt(path));
        }
        return Ok(Object {
            path,
            toolchain: "prebuilt".to_owned(),
        });
    }
    let toolchain = Toolchain::find().ok_or(RecipeError::NoToolchain)?;
    let path_variable = path_with_linker()?;
    let mut command = toolchain.cargo();
    clean(&mut command);
    toolchain.choose(&mut command);
    command
        .current_dir(request.root.join("bpf"))
        .env("PATH", path_variable)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(request.arch))
        .args([
            "build",
            "--locked",
            "--release",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
            "--target-dir",
        ])
        .arg(request.target_dir);
    let program = PathBuf::from(command.get_program());
    let status = command.status().map_err(|error| RecipeError::Spawn(program, error))?;
    if !status.success() {
        return Err(RecipeError::Build(toolchain.name().to_owned()));
    }
    let path = request.target_dir.join(TARGET).join("release").join(BINARY);
    if !path.is_file() {
        return Err(RecipeError::NoObject(path));
    }
    Ok(Object {
        path,
        toolchain: toolchain.name().to_owned(),
    })
}

/// Full debug information and BTF: the loader reads map definitions from it and the verifier's log quotes source lines.
fn flags(arch: &str) -> String {
    [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ]
    .join("\x1f")
}

/// A compiler that has the sources of `core`.
enum Toolchain {
    /// `rustup run nightly`.
    Nightly,
    /// The distribution's compiler, told to accept nightly features.
    System(PathBuf),
}

impl Toolchain {
    fn find() -> Option<Self> {
        let mut nightly = Command::new("rustup");
        nightly.args(["run", "nightly", "rustc"]);
        if has_library_sources(nightly) {
            return Some(Self::Nightly);
        }
        let system = PathBuf::from("/usr/bin/rustc");
        has_library_sources(Command::new(&system)).then_some(Self::System(system))
    }

    fn name(&self) -> &str {
        match self {
            Self::Nightly => "rustup nightly",
            Self::System(_) => "/usr/bin/rustc",
        }
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Self::System(_) => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        }
    }

    /// After [`clean`]: names the compiler to a cargo that may come from another tool chain.
    fn choose(&self, command: &mut Command) {
        if let Self::System(rustc) = self {
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        }
    }
}

fn has_library_sources(mut rustc: Command) -> bool {
    clean(&mut rustc);
    let Ok(output) = rustc.args(["--print", "sysroot"]).output() else {
        return false;
    };
    let Ok(sysroot) = String::from_utf8(output.stdout) else {
        return false;
    };
    output.status.success()
        && Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
}

/// Takes away what the outer cargo, clippy or rustup put into the environment: the inner build has another compiler,
/// target and flags, and would inherit the wrong ones (or rebuild everything each time one of them changes).
fn clean(command: &mut Command) {
    const PREFIXES: [&str; 10] = [
        "RUSTC",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
    ];
    const NAMES: [&str; 8] = [
        "CARGO",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "HOST",
        "TARGET",
        "OUT_DIR",
        "OPT_LEVEL",
        "PROFILE",
    ];
    for (key, _) in env::vars_os() {
        let Some(name) = key.to_str() else { continue };
        let flags = name.ends_with("FLAGS");
        if flags || NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}

/// `PATH`, with the cached bpf-linker's folder in front when `PATH` has none.
fn path_with_linker() -> Result<std::ffi::OsString, RecipeError> {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|folder| folder.join("bpf-linker").is_file()) {
        return Ok(path);
    }
    let cache = env::var_os("BULKHEAD_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/bulkhead"),
        PathBuf::from,
    );
    let folder = cache.join(format!("tools/bpf-linker-{BPF_LINKER_VERSION}/bin"));
    let linker = folder.join("bpf-linker");
    if !linker.is_file() {
        return Err(RecipeError::NoLinker(linker));
    }
    env::join_paths(std::iter::once(folder).chain(env::split_paths(&path))).map_err(|_| RecipeError::NoLinker(linker))
}

/// Copies the object to where the agent embeds it from; leaves an equal file alone, so that nothing is rebuilt for it.
pub(crate) fn install(object: &Object, destination: &Path) -> std::io::Result<()> {
    let bytes = fs::read(&object.path)?;
    if fs::read(destination).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(destination, bytes)
}
