//! The device's primary CUDA context on the queue's thread.
//!
//! UCX looks for a current context when it posts; without one it gives up NVLink and copies through
//! host memory, silently. Engines have a context on their own threads, but the queue posts on another.
//! The driver library is opened at run time, when the first request with GPU memory comes, so that
//! kvferry needs no CUDA to be built, loaded or used without a GPU.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::error::{Result, Status, bail};

/// Environment variable that names the driver library instead of `libcuda.so.1`; for tests and unusual
/// installations. Documented in docs/development.md.
pub const LIBRARY_VARIABLE: &str = "KVF_CUDA_LIBRARY";

type CuResult = c_int;
type CuDevice = c_int;
type CuContext = *mut c_void;

/// The four driver functions that are needed. Their signatures have been stable since CUDA 7.
struct Driver {
    device_get: unsafe extern "C" fn(*mut CuDevice, c_int) -> CuResult,
    retain: unsafe extern "C" fn(*mut CuContext, CuDevice) -> CuResult,
    release: unsafe extern "C" fn(CuDevice) -> CuResult,
    set_current: unsafe extern "C" fn(CuContext) -> CuResult,
}

/// Contexts of one thread. Not `Send`: a current context is a property of the thread.
pub(super) struct Contexts {
    driver: Option<Driver>,
    retained: HashMap<u64, (CuDevice, CuContext)>,
    current: Option<u64>,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Contexts {
    pub(super) fn new() -> Self {
        Contexts {
            driver: None,
            retained: HashMap::new(),
            current: None,
            _thread: std::marker::PhantomData,
        }
    }

    /// Makes the primary context of a device current on this thread.
    pub(super) fn enter(&mut self, device: u64) -> Result<()> {
        if self.current == Some(device) {
            return Ok(());
        }
        let driver = match &self.driver {
            Some(driver) => driver,
            None => self.driver.insert(open()?),
        };
        let context = match self.retained.get(&device) {
            Some((_, context)) => *context,
            None => {
                let held = retain(driver, device)?;
                self.retained.insert(device, held);
                held.1
            }
        };
        // SAFETY: the context was retained from this driver and is released only on drop.
        check("cuCtxSetCurrent", device, unsafe {
            (driver.set_current)(context)
        })?;
        self.current = Some(device);
        Ok(())
    }
}

impl Drop for Contexts {
    fn drop(&mut self) {
        let Some(driver) = &self.driver else { return };
        // SAFETY: NULL detaches this thread from its context; each device was retained once.
        unsafe {
            (driver.set_current)(std::ptr::null_mut());
            for (device, _) in self.retained.values() {
                (driver.release)(*device);
            }
        }
    }
}

fn retain(driver: &Driver, device: u64) -> Result<(CuDevice, CuContext)> {
    let Ok(ordinal) = c_int::try_from(device) else {
        bail!(
            Status::InvalidArgument,
            "CUDA device {device} is not an ordinal"
        );
    };
    let mut cu_device: CuDevice = 0;
    // SAFETY: the driver is initialised; the output is a valid place.
    check("cuDeviceGet", device, unsafe {
        (driver.device_get)(&mut cu_device, ordinal)
    })?;
    let mut context: CuContext = std::ptr::null_mut();
    // SAFETY: as above.
    check("cuDevicePrimaryCtxRetain", device, unsafe {
        (driver.retain)(&mut context, cu_device)
    })?;
    Ok((cu_device, context))
}

fn check(call: &str, device: u64, result: CuResult) -> Result<()> {
    match result {
        0 => Ok(()),
        code => bail!(
            Status::Backend,
            "{call} of CUDA device {device} failed with CUresult {code}"
        ),
    }
}

/// Opens and initialises the driver library. It stays in the process: other libraries use it, too.
fn open() -> Result<Driver> {
    let name = std::env::var(LIBRARY_VARIABLE).unwrap_or_else(|_| "libcuda.so.1".to_owned());
    let Ok(c_name) = CString::new(name.as_str()) else {
        bail!(
            Status::InvalidArgument,
            "{LIBRARY_VARIABLE} {name:?} contains a NUL"
        );
    };
    // SAFETY: opening runs the library's initialisers, which is what loading the driver means.
    let library = unsafe { libc::dlopen(c_name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        bail!(
            Status::NoBackend,
            "the request has GPU memory, but the CUDA driver cannot be opened: {}",
            dl_error()
        );
    }
    // SAFETY: these are the driver API's names and signatures.
    unsafe {
        let init: unsafe extern "C" fn(u32) -> CuResult =
            std::mem::transmute(symbol(library, c"cuInit")?);
        let driver = Driver {
            device_get: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut CuDevice, c_int) -> CuResult,
            >(symbol(library, c"cuDeviceGet")?),
            retain: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut CuContext, CuDevice) -> CuResult,
            >(symbol(library, c"cuDevicePrimaryCtxRetain")?),
            // _v2 is what cuda.h has called it since CUDA 11; older drivers know the plain name.
            release: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(CuDevice) -> CuResult>(
                symbol(library, c"cuDevicePrimaryCtxRelease_v2")
                    .or_else(|_| symbol(library, c"cuDevicePrimaryCtxRelease"))?,
            ),
            set_current: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(CuContext) -> CuResult,
            >(symbol(library, c"cuCtxSetCurrent")?),
        };
        match init(0) {
            0 => Ok(driver),
            code => bail!(Status::NoBackend, "cuInit failed with CUresult {code}"),
        }
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void> {
    // SAFETY: the library is open and the name ends with a NUL.
    let address = unsafe { libc::dlsym(library, name.as_ptr().cast::<c_char>()) };
    if address.is_null() {
        bail!(
            Status::NoBackend,
            "the CUDA driver has no {}",
            name.to_string_lossy()
        );
    }
    Ok(address)
}

fn dl_error() -> String {
    // SAFETY: dlerror returns NULL or a string that is valid until the next dl call of this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
