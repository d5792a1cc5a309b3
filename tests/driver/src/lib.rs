//! The functions of the NVIDIA driver that the launcher uses, over the interpreter of PTX: what runs in tests where a GPU
//! would.
//!
//! Invariant: it keeps the driver's rules as far as the launcher could break them: nothing works before `cuInit` and without
//! a current context, memory is what was allocated and not freed, what is captured does not run until its graph is launched,
//! and after an access outside of memory every call fails. Work is done at once; that it is asynchronous is not seen here.
//!
//! Link or copy the library to `libcuda.so` in a folder of its own and set `LD_LIBRARY_PATH` to the folder.
//! `KILN_STAND_IN` makes it a worse device, by words with commas between them: `version=10020` (an old driver),
//! `devices=0`, `capability=75`, `memory=65536` (bytes), `checks` (look for races as well), `refuse` (no PTX is new enough).

mod state;

use kiln_ptx::emulate::{Swizzle, TensorMap};
use state::{Node, STATE, State, Status};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::PoisonError;

/// Most bytes of a kernel's parameter: those of a tensor map.
const MOST_PARAMETER: usize = 128;

const OK: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const NOT_INITIALIZED: Status = 3;
const NO_DEVICE: Status = 100;
const INVALID_DEVICE: Status = 101;
const INVALID_CONTEXT: Status = 201;
const INVALID_PTX: Status = 218;
const UNSUPPORTED_PTX_VERSION: Status = 222;
const INVALID_HANDLE: Status = 400;
const NOT_FOUND: Status = 500;
const ILLEGAL_ADDRESS: Status = 700;
const LAUNCH_FAILED: Status = 719;
const CAPTURE_UNSUPPORTED: Status = 900;

/// Runs a call on the one state, unless an earlier one has failed for good.
fn call(f: impl FnOnce(&mut State) -> Result<(), Status>) -> Status {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if !state.initialised {
        return NOT_INITIALIZED;
    }
    if let Some(status) = state.broken {
        return status;
    }
    f(&mut state).err().unwrap_or(OK)
}

/// The same for what needs a context.
fn within(f: impl FnOnce(&mut State) -> Result<(), Status>) -> Status {
    call(|state| if state.current { f(state) } else { Err(INVALID_CONTEXT) })
}

/// Writes to where the caller points.
///
/// # Safety
/// The pointer is null or points to room for a `T`.
unsafe fn give<T>(to: *mut T, value: T) -> Result<(), Status> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: it is not null, and the caller of the driver says that it has room.
    unsafe { to.write(value) };
    Ok(())
}

fn handle(number: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(number + 1)
}

fn number(handle: *mut c_void) -> Result<usize, Status> {
    handle.addr().checked_sub(1).ok_or(INVALID_HANDLE)
}

/// The one context.
const CONTEXT: usize = 0xc0;

/// Functions of the driver: each is `extern "C"` under its name there, is unsafe since it follows pointers of the caller,
/// and gives a `CUresult`.
macro_rules! driver {
    ($(fn $name:ident($($argument:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of the driver's manual.")]
        ///
        /// # Safety
        /// Pointers are valid for what the manual says of them.
        // SAFETY: the name is the driver's, which no program has beside this library.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $ty),*) -> Status $body
    )* };
}

driver! {
    fn cuInit(_flags: c_uint) {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        if state.worse("devices").is_some_and(|n| n == 0) {
            return NO_DEVICE;
        }
        state.initialised = true;
        OK
    }
    fn cuDriverGetVersion(version: *mut c_int) {
        let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        let own = state.worse("version").and_then(|v| c_int::try_from(v).ok()).unwrap_or(12080);
        // SAFETY: as the caller promises.
        unsafe { give(version, own) }.err().unwrap_or(OK)
    }
    fn cuDeviceGetCount(count: *mut c_int) {
        // SAFETY: as the caller promises.
        call(|_| unsafe { give(count, 1) })
    }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        // SAFETY: as the caller promises.
        call(|_| if ordinal == 0 { unsafe { give(device, 0) } } else { Err(INVALID_DEVICE) })
    }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
        let own = c"interpreter of PTX (no GPU)".to_bytes_with_nul();
        call(|_| {
            if usize::try_from(len).is_ok_and(|len| len >= own.len()) && !name.is_null() {
                // SAFETY: the caller has room for `len` bytes, which are enough.
                unsafe { std::ptr::copy_nonoverlapping(own.as_ptr().cast(), name, own.len()) };
                return Ok(());
            }
            Err(INVALID_VALUE)
        })
    }
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) {
        call(|state| {
            let capability = state.worse("capability").and_then(|c| c_int::try_from(c).ok()).unwrap_or(80);
            let own = match attribute {
                75 => capability / 10,
                76 => capability % 10,
                // Memory pools.
                115 => 1,
                _ => return Err(INVALID_VALUE),
            };
            // SAFETY: as the caller promises.
            unsafe { give(value, own) }
        })
    }
    fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) {
        // SAFETY: as the caller promises.
        call(|_| unsafe { give(context, handle(CONTEXT)) })
    }
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) {
        call(|_| Ok(()))
    }
    fn cuCtxGetCurrent(context: *mut *mut c_void) {
        call(|state| {
            let current = if state.current { handle(CONTEXT) } else { std::ptr::null_mut() };
            // SAFETY: as the caller promises.
            unsafe { give(context, current) }
        })
    }
    fn cuCtxSetCurrent(context: *mut c_void) {
        call(|state| {
            state.current = context == handle(CONTEXT);
            if state.current { Ok(()) } else { Err(INVALID_CONTEXT) }
        })
    }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        within(|state| {
            // SAFETY: as the caller promises.
            unsafe { give(free, state.free()) }?;
            // SAFETY: as the caller promises.
            unsafe { give(total, state.total()) }
        })
    }
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        // SAFETY: as the caller promises.
        within(|state| unsafe { give(address, state.allocate(bytes)?) })
    }
    fn cuMemAllocAsync(address: *mut u64, bytes: usize, _stream: *mut c_void) {
        // SAFETY: as the caller promises.
        within(|state| unsafe { give(address, state.allocate(bytes)?) })
    }
    fn cuMemFree_v2(address: u64) {
        within(|state| state.release(address))
    }
    fn cuMemFreeAsync(address: u64, _stream: *mut c_void) {
        within(|state| state.release(address))
    }
    fn cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        within(|state| {
            let mut pinned = vec![0xa5u8; bytes].into_boxed_slice();
            // SAFETY: as the caller promises; the bytes stay where they are until they are freed.
            unsafe { give(memory, pinned.as_mut_ptr().cast()) }?;
            state.pinned.push(pinned);
            Ok(())
        })
    }
    fn cuMemFreeHost(memory: *mut c_void) {
        within(|state| {
            let held = state.pinned.iter().position(|p| p.as_ptr().cast() == memory.cast_const());
            state.pinned.swap_remove(held.ok_or(INVALID_VALUE)?);
            Ok(())
        })
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: *mut c_void) {
        within(|state| {
            if state.capturing.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            let target = state.bytes(to, bytes)?;
            // SAFETY: the caller says that it has so many bytes, and the target was looked up with that length.
            unsafe { std::ptr::copy_nonoverlapping(from.cast(), target.as_mut_ptr(), bytes) };
            Ok(())
        })
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: *mut c_void) {
        within(|state| {
            if state.capturing.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            let source = state.bytes(from, bytes)?;
            // SAFETY: the caller says that it has room for so many bytes, and the source was looked up with that length.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), to.cast(), bytes) };
            Ok(())
        })
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: *mut c_void) {
        within(|state| state.submit(Node::Copy { to, from, bytes }))
    }
    fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: *mut c_void) {
        within(|state| state.submit(Node::Set { to, value, bytes }))
    }
    fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) {
        within(|state| {
            if image.is_null() {
                return Err(INVALID_VALUE);
            }
            // SAFETY: PTX text is passed as a string that ends with a zero byte.
            let text = unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| INVALID_PTX)?;
            // SAFETY: as the caller promises.
            unsafe { give(module, handle(state.load(text)?)) }
        })
    }
    fn cuModuleUnload(module: *mut c_void) {
        within(|state| state.unload(number(module)?))
    }
    fn cuModuleGetFunction(function: *mut *mut c_void, module: *mut c_void, name: *const c_char) {
        within(|state| {
            if name.is_null() {
                return Err(INVALID_VALUE);
            }
            // SAFETY: names are strings that end with a zero byte.
            let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?;
            // SAFETY: as the caller promises.
            unsafe { give(function, handle(state.function(number(module)?, name)?)) }
        })
    }
    fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) {
        // 8 is the greatest dynamic shared memory.
        within(|state| if attribute == 8 { state.allow(number(function)?, value) } else { Err(INVALID_VALUE) })
    }
    fn cuLaunchKernel(
        function: *mut c_void,
        x: c_uint,
        y: c_uint,
        z: c_uint,
        threads_x: c_uint,
        threads_y: c_uint,
        threads_z: c_uint,
        shared: c_uint,
        _stream: *mut c_void,
        parameters: *mut *mut c_void,
        _extra: *mut *mut c_void,
    ) {
        within(|state| {
            let function = number(function)?;
            let mut arguments = Vec::new();
            for (n, bytes) in state.parameters(function)?.into_iter().enumerate() {
                let mut value = vec![0u8; bytes];
                if parameters.is_null() || bytes > MOST_PARAMETER {
                    return Err(INVALID_VALUE);
                }
                // SAFETY: the caller passes a pointer to each argument that the kernel declares, of its size.
                unsafe { std::ptr::copy_nonoverlapping((*parameters.add(n)).cast(), value.as_mut_ptr(), bytes) };
                arguments.push(value);
            }
            let (grid, block) = ([x, y, z], [threads_x, threads_y, threads_z]);
            state.submit(Node::Launch { function, grid, block, shared: shared as usize, arguments })
        })
    }
    fn cuTensorMapEncodeTiled(
        map: *mut [u8; 128],
        dtype: c_uint,
        rank: c_uint,
        address: *mut c_void,
        extents: *const u64,
        strides: *const u64,
        shape: *const u32,
        steps: *const u32,
        interleave: c_uint,
        swizzle: c_uint,
        _promotion: c_uint,
        fill: c_uint,
    ) {
        within(|_| {
            let rank = usize::try_from(rank).ok().filter(|n| (1..=5).contains(n)).ok_or(INVALID_VALUE)?;
            // SAFETY: the caller passes lists of `rank` numbers, of which those of strides are one fewer.
            let (extents, strides, shape, steps) = unsafe {
                (
                    std::slice::from_raw_parts(extents, rank),
                    std::slice::from_raw_parts(strides, rank - 1),
                    std::slice::from_raw_parts(shape, rank),
                    std::slice::from_raw_parts(steps, rank),
                )
            };
            // Elements of two bytes, no interleaving, the swizzle of 128 bytes, zeros outside.
            if !matches!(dtype, 1 | 6 | 9) || interleave != 0 || swizzle != 3 || fill != 0 || steps.iter().any(|s| *s != 1) {
                return Err(INVALID_VALUE);
            }
            let (extents, strides, shape) = (extents.to_vec(), strides.to_vec(), shape.to_vec());
            let address = address.addr() as u64;
            let made = TensorMap { address, element: 2, extents, strides, shape, swizzle: Swizzle::Row(128) };
            // SAFETY: as the caller promises.
            unsafe { give(map, made.encode().map_err(|_| INVALID_VALUE)?) }
        })
    }
    fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) {
        // SAFETY: as the caller promises.
        within(|_| unsafe { give(stream, handle(0)) })
    }
    fn cuStreamDestroy_v2(_stream: *mut c_void) {
        within(|_| Ok(()))
    }
    fn cuStreamSynchronize(_stream: *mut c_void) {
        within(|state| if state.capturing.is_some() { Err(CAPTURE_UNSUPPORTED) } else { Ok(()) })
    }
    fn cuStreamBeginCapture_v2(_stream: *mut c_void, _mode: c_int) {
        within(|state| {
            let nested = state.capturing.replace(Vec::new());
            if nested.is_none() { Ok(()) } else { Err(INVALID_VALUE) }
        })
    }
    fn cuStreamEndCapture(_stream: *mut c_void, graph: *mut *mut c_void) {
        within(|state| {
            let nodes = state.capturing.take().ok_or(INVALID_VALUE)?;
            state.graphs.push(Some(nodes));
            // SAFETY: as the caller promises.
            unsafe { give(graph, handle(state.graphs.len() - 1)) }
        })
    }
    fn cuGraphInstantiateWithFlags(instance: *mut *mut c_void, graph: *mut c_void, _flags: c_ulonglong) {
        within(|state| {
            let nodes = state.graphs.get(number(graph)?).cloned().flatten().ok_or(INVALID_HANDLE)?;
            state.graphs.push(Some(nodes));
            // SAFETY: as the caller promises.
            unsafe { give(instance, handle(state.graphs.len() - 1)) }
        })
    }
    fn cuGraphLaunch(instance: *mut c_void, _stream: *mut c_void) {
        within(|state| {
            let nodes = state.graphs.get(number(instance)?).cloned().flatten().ok_or(INVALID_HANDLE)?;
            nodes.into_iter().try_for_each(|node| state.submit(node))
        })
    }
    fn cuGraphExecDestroy(instance: *mut c_void) {
        within(|state| state.forget(number(instance)?))
    }
    fn cuGraphDestroy(graph: *mut c_void) {
        within(|state| state.forget(number(graph)?))
    }
    fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) {
        within(|state| {
            state.events.push(std::time::Instant::now());
            // SAFETY: as the caller promises.
            unsafe { give(event, handle(state.events.len() - 1)) }
        })
    }
    fn cuEventRecord(event: *mut c_void, _stream: *mut c_void) {
        within(|state| {
            *state.events.get_mut(number(event)?).ok_or(INVALID_HANDLE)? = std::time::Instant::now();
            Ok(())
        })
    }
    fn cuEventSynchronize(_event: *mut c_void) {
        within(|_| Ok(()))
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) {
        within(|state| {
            let at = |event| state.events.get(number(event)?).copied().ok_or(INVALID_HANDLE);
            let time = at(end)?.saturating_duration_since(at(start)?);
            // SAFETY: as the caller promises.
            unsafe { give(milliseconds, time.as_secs_f32() * 1e3) }
        })
    }
    fn cuEventDestroy_v2(_event: *mut c_void) {
        within(|_| Ok(()))
    }
    fn cuGetErrorName(_status: Status, name: *mut *const c_char) {
        // SAFETY: as the caller promises.
        unsafe { give(name, c"an error of the stand-in".as_ptr()) }.err().unwrap_or(OK)
    }
    fn cuGetErrorString(_status: Status, text: *mut *const c_char) {
        // SAFETY: as the caller promises.
        unsafe { give(text, c"an error of the stand-in".as_ptr()) }.err().unwrap_or(OK)
    }
}
