//! NVIDIA's run-time compiler, loaded from a file. It needs neither a GPU nor a driver.
#![allow(unsafe_code, reason = "a C library that is not there when this is compiled")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use anyhow::{Context as _, Result, anyhow, ensure};
use libloading::{Library, Symbol};

/// How everything is compiled. Products and sums are not contracted, so that results are the host's, to the bit.
pub(crate) const OPTIONS: &[&str] = &["--gpu-architecture=compute_70", "--std=c++17", "--fmad=false"];

/// `nvrtcProgram`.
type Program = *mut c_void;
/// `nvrtcResult`: 0 is success.
type Code = c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Code;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Code;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> Code;
type Destroy = unsafe extern "C" fn(*mut Program) -> Code;
type ErrorName = unsafe extern "C" fn(Code) -> *const c_char;

/// The library.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    library: Library,
}

impl Nvrtc {
    /// Loads the library, which finds its built-in headers beside itself.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        // SAFETY: NVIDIA's library has no initialiser that asks anything of us.
        let library = unsafe { Library::new(path) }.with_context(|| format!("cannot load {}", path.display()))?;
        Ok(Self { library })
    }

    /// Compiles one unit to PTX; `headers` are found under their names.
    pub(crate) fn compile(&self, name: &str, source: &str, headers: &[(String, String)]) -> Result<String> {
        let (name, source) = (CString::new(name)?, CString::new(source)?);
        let strings = |texts: Vec<&str>| texts.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let names = strings(headers.iter().map(|(name, _)| name.as_str()).collect())?;
        let texts = strings(headers.iter().map(|(_, text)| text.as_str()).collect())?;
        let options = strings(OPTIONS.to_vec())?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let mut program = Opened { nvrtc: self, program: ptr::null_mut() };
        let count = |texts: &[CString]| c_int::try_from(texts.len());
        // SAFETY: each function has the type that nvrtc.h gives it. All strings end with a zero and outlive the calls, and
        // the counts are those of the arrays.
        unsafe {
            let create: Symbol<'_, Create> = self.function("nvrtcCreateProgram")?;
            let (texts_at, names_at) = (pointers(&texts), pointers(&names));
            let code = create(
                &mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                count(&texts)?,
                texts_at.as_ptr(),
                names_at.as_ptr(),
            );
            self.succeeded(code).context("nvrtcCreateProgram")?;
            let compile: Symbol<'_, Compile> = self.function("nvrtcCompileProgram")?;
            let code = compile(program.program, count(&options)?, pointers(&options).as_ptr());
            let log = program.text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
            self.succeeded(code).with_context(|| format!("{name:?} does not compile:\n{log}"))?;
            // Warnings count: nobody would read them.
            ensure!(log.trim().is_empty(), "{name:?}:\n{log}");
        }
        program.text("nvrtcGetPTXSize", "nvrtcGetPTX")
    }

    /// # Safety
    /// `T` is the type of the function of this name.
    unsafe fn function<T>(&self, name: &str) -> Result<Symbol<'_, T>> {
        // SAFETY: the caller's promise.
        unsafe { self.library.get(name.as_bytes()) }.with_context(|| format!("this NVRTC has no {name}"))
    }

    fn succeeded(&self, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the type is that of nvrtc.h; what it returns is a constant of the library, which is still loaded.
        let name = unsafe {
            let name: Symbol<'_, ErrorName> = self.function("nvrtcGetErrorString")?;
            CStr::from_ptr(name(code)).to_string_lossy().into_owned()
        };
        Err(anyhow!(name))
    }
}

/// A program of the library's, until it is dropped.
struct Opened<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Opened<'_> {
    /// A text of the program's, by the functions that give its size and itself.
    fn text(&self, size_name: &str, text_name: &str) -> Result<String> {
        let mut bytes;
        // SAFETY: both functions have the types that nvrtc.h gives them, the program is open, and the second writes as many
        // bytes as the first said.
        unsafe {
            let size: Symbol<'_, Size> = self.nvrtc.function(size_name)?;
            let mut len = 0;
            self.nvrtc.succeeded(size(self.program, &mut len)).with_context(|| size_name.to_owned())?;
            bytes = vec![0_u8; len];
            let text: Symbol<'_, Text> = self.nvrtc.function(text_name)?;
            let code = text(self.program, bytes.as_mut_ptr().cast());
            self.nvrtc.succeeded(code).with_context(|| text_name.to_owned())?;
        }
        // The size counts the zero at the end.
        bytes.pop();
        Ok(String::from_utf8(bytes)?)
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if self.program.is_null() {
            return;
        }
        // SAFETY: the type is that of nvrtc.h, and nobody uses the program after this. That it fails leaks memory only.
        unsafe {
            if let Ok(destroy) = self.nvrtc.function::<Destroy>("nvrtcDestroyProgram") {
                let code = destroy(&mut self.program);
                debug_assert_eq!(code, 0, "an open program is destroyed");
            }
        }
    }
}
