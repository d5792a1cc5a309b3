//! The functions of the NVIDIA driver that the launcher uses, over the interpreter of PTX: what runs in tests where a GPU
//! would.
//!
//! Invariant: it keeps the driver's rules as far as the launcher could break them: nothing works before `cuInit` and without
//! a current context, memory is what was allocated and not freed, what is captured does not run until its graph is launched,
//! and after an access outside of memory every call fails. Work on the stream is put off until something waits for it, as late as a
//! device could be: pinned memory is read and written only then, and what a copy will write is overwritten when it is asked for, so
//! that who does not wait reads rubbish. Ordinary memory is copied before the call returns, as the driver does. There is one stream.
//!
//! Link or copy the library to `libcuda.so` in a folder of its own and set `LD_LIBRARY_PATH` to the folder.
//! `KILN_STAND_IN` makes it a worse device, by words with commas between them: `version=10020` (an old driver),
//! `devices=0`, `capability=75`, `memory=65536` (bytes), `checks` (look for races as well), `refuse` (no PTX is new enough),
//! `unpinned` (no pinned memory), `counts` (say at the end how many bytes were copied).

mod state;

use kiln_ptx::emulate::{Swizzle, TensorMap};
use state::{Counts, HostMemory, Node, Pinned, STATE, State, Status};
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
const NOT_READY: Status = 600;

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
        call(|state| {
            if state.worse("counts").is_some() {
                let Counts { to_device, from_device, within, launches } = state.counts;
                eprintln!("stand-in: {to_device} bytes to the device, {from_device} from it, {within} on it; {launches} launches");
            }
            state.drain()
        })
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
        within(|state| {
            state.drain()?;
            state.release(address)
        })
    }
    fn cuMemFreeAsync(address: u64, _stream: *mut c_void) {
        within(|state| {
            state.drain()?;
            state.release(address)
        })
    }
    fn cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        within(|state| {
            if state.worse("unpinned").is_some() {
                return Err(OUT_OF_MEMORY);
            }
            let pinned = Pinned::new(bytes);
            // SAFETY: as the caller promises; the bytes stay where they are until they are freed.
            unsafe { give(memory, pinned.address().cast()) }?;
            state.pinned.push(pinned);
            Ok(())
        })
    }
    fn cuMemFreeHost(memory: *mut c_void) {
        within(|state| {
            state.drain()?;
            let held = state.pinned.iter().position(|p| p.address() == memory.cast());
            state.pinned.swap_remove(held.ok_or(INVALID_VALUE)?);
            Ok(())
        })
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: *mut c_void) {
        within(|state| {
            if state.capturing.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            state.bytes(to, bytes)?;
            let host = HostMemory(from.cast_mut().cast());
            if state.is_pinned(host, bytes) {
                return state.submit(Node::Upload { to, from: host, bytes });
            }
            // SAFETY: the caller says that it has so many bytes.
            let contents = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec();
            state.submit(Node::Write { to, contents })
        })
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: *mut c_void) {
        within(|state| {
            if state.capturing.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            state.bytes(from, bytes)?;
            let host = HostMemory(to.cast());
            let pinned = state.is_pinned(host, bytes);
            if pinned {
                // SAFETY: the caller says that it has room for so many bytes.
                unsafe { std::ptr::write_bytes(to.cast::<u8>(), 0xa5, bytes) };
            }
            state.submit(Node::Download { to: host, from, bytes })?;
            if pinned { Ok(()) } else { state.drain() }
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
        within(|state| {
            state.drain()?;
            state.unload(number(module)?)
        })
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
        within(|state| if state.capturing.is_some() { Err(CAPTURE_UNSUPPORTED) } else { state.drain() })
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
            state.events.push(None);
            // SAFETY: as the caller promises.
            unsafe { give(event, handle(state.events.len() - 1)) }
        })
    }
    fn cuEventRecord(event: *mut c_void, _stream: *mut c_void) {
        within(|state| {
            let event = number(event)?;
            // What was recorded before does not count any more.
            *state.events.get_mut(event).ok_or(INVALID_HANDLE)? = None;
            state.submit(Node::Record { event })
        })
    }
    fn cuEventSynchronize(event: *mut c_void) {
        within(|state| state.drain_to(number(event)?))
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) {
        within(|state| {
            let at = |event| state.events.get(number(event)?).ok_or(INVALID_HANDLE)?.ok_or(NOT_READY);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a caller sees before it has waited, and after.
    #[test]
    fn work_is_done_when_something_waits_for_it() {
        let (mut memory, mut pinned, mut event) = (0u64, std::ptr::null_mut(), std::ptr::null_mut());
        let none = std::ptr::null_mut();
        // SAFETY: all pointers are to values here, and lengths are those of what they point to.
        unsafe {
            assert_eq!(cuInit(0), OK);
            assert_eq!(cuCtxSetCurrent(handle(CONTEXT)), OK);
            assert_eq!(cuMemAlloc_v2(&mut memory, 8), OK);
            assert_eq!(cuMemHostAlloc(&mut pinned, 8, 0), OK);
            let bytes = pinned.cast::<[u8; 4]>();
            bytes.write([1, 2, 3, 4]);
            assert_eq!(cuMemcpyHtoDAsync_v2(memory, pinned, 4, none), OK);
            // Who writes to what a copy under way reads has it copied.
            bytes.write([5, 6, 7, 8]);
            assert_eq!(cuEventCreate(&mut event, 0), OK);
            assert_eq!(cuEventRecord(event, none), OK);
            let mut time = 0f32;
            assert_eq!(cuEventElapsedTime(&mut time, event, event), NOT_READY);
            assert_eq!(cuMemcpyDtoHAsync_v2(bytes.add(1).cast(), memory, 4, none), OK);
            assert_eq!(*bytes.add(1), [0xa5; 4]);
            assert_eq!(cuEventSynchronize(event), OK);
            assert_eq!(cuEventElapsedTime(&mut time, event, event), OK);
            assert_eq!(*bytes.add(1), [0xa5; 4], "the copy comes after the event");
            assert_eq!(cuStreamSynchronize(none), OK);
            assert_eq!(*bytes.add(1), [5, 6, 7, 8]);
            // Ordinary memory is read before the call returns, and written before it does.
            let (mut ordinary, mut back) = ([9u8; 4], [0u8; 4]);
            assert_eq!(cuMemcpyHtoDAsync_v2(memory, ordinary.as_ptr().cast(), 4, none), OK);
            ordinary.fill(0);
            assert_eq!(cuMemcpyDtoHAsync_v2(back.as_mut_ptr().cast(), memory, 4, none), OK);
            assert_eq!((ordinary, back), ([0; 4], [9; 4]));
            assert_eq!(cuMemFreeHost(pinned), OK);
            assert_eq!(cuMemFree_v2(memory), OK);
        }
    }
}
