//! Finding a device.
//!
//! Invariant: no function of the driver is called before [`Device::open`] has found all of [`NEEDED`] in its library, since
//! the bindings panic at a symbol that is not there.

use super::Unavailable;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::sync::Arc;

/// Every function of the driver that is used here, directly or by the bindings.
const NEEDED: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// The least version of the driver: graphs as they are made here are of CUDA 11.4.
const LEAST: i32 = 11040;

/// The GPU that code is for, at least.
const CAPABILITY: (i32, i32) = (8, 0);

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its name.
    pub name: String,
    /// Its compute capability, such as 8 and 0.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: u64,
    /// The version of CUDA that its driver is for: 1000 times the major one and 10 times the minor one.
    pub driver: i32,
}

/// The first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses), with a stream of its own.
#[derive(Debug)]
pub struct Device {
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    properties: Properties,
}

impl Device {
    /// Looks for a driver and a GPU that code can run on.
    ///
    /// # Errors
    /// What is missing.
    pub fn open() -> Result<Device, Unavailable> {
        // SAFETY: opening the driver's library runs its initialisers, as every program that uses it does.
        if !unsafe { sys::is_culib_present() } {
            return Err(Unavailable::NoDriver);
        }
        // SAFETY: as above; it has just been seen that there is a library.
        let library = unsafe { sys::culib() };
        // SAFETY: the symbols are only looked up, as pointers of no type that anybody follows.
        let has = |name: &str| unsafe { library.get::<*const ()>(name.as_bytes()).is_ok() };
        let missing: Vec<&'static str> = NEEDED.iter().copied().filter(|name| !has(name)).collect();
        if !missing.is_empty() {
            return Err(Unavailable::Incomplete { missing });
        }
        let broken = |call: &'static str| move |e: DriverError| Unavailable::Broken { call, status: e.0 as u32 };
        let mut driver = 0;
        // SAFETY: the function writes one int to where it is pointed, and may be called before any other.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().map_err(broken("cuDriverGetVersion"))?;
        if driver < LEAST {
            return Err(Unavailable::Old { version: driver, least: LEAST });
        }
        match result::init() {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Unavailable::NoDevice),
            done => done.map_err(broken("cuInit"))?,
        }
        if result::device::get_count().map_err(broken("cuDeviceGetCount"))? < 1 {
            return Err(Unavailable::NoDevice);
        }
        let context = CudaContext::new(0).map_err(broken("cuDevicePrimaryCtxRetain"))?;
        let attribute = |a: Attribute| context.attribute(a).map_err(broken("cuDeviceGetAttribute"));
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = context.name().map_err(broken("cuDeviceGetName"))?;
        if capability < CAPABILITY {
            return Err(Unavailable::OldDevice { name, capability });
        }
        let (_, memory) = context.mem_get_info().map_err(broken("cuMemGetInfo"))?;
        // SAFETY: there is one stream, and it is waited for before anything is read or freed, so nothing has to be tracked.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(broken("cuStreamCreate"))?;
        let properties = Properties { name, capability, memory: memory as u64, driver };
        Ok(Device { context, stream, properties })
    }

    /// What the device says of itself.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }
}
