//! Tensor maps, which the driver makes.
//!
//! Invariant: only a map that lies within its slot is made. The function is looked up when the first one is wanted: drivers
//! before CUDA 12 do not have it, and need none, since code with tensor maps is for GPUs that they do not know.

use super::{CudaError, TensorMap, meaning};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DeviceRepr, DriverError};
use std::ffi::c_void;

/// What the driver makes of a map: an argument by value.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Encoded([u64; 16]);

// SAFETY: it is `CUtensorMap`, which the driver's header declares as 16 u64 aligned to 64 bytes and passes by value.
unsafe impl DeviceRepr for Encoded {}

/// `cuTensorMapEncodeTiled` of the driver API.
type Encode = unsafe extern "C" fn(
    *mut Encoded,
    u32,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    u32,
    u32,
    u32,
    u32,
) -> CUresult;

/// `CU_TENSOR_MAP_DATA_TYPE_UINT16`: bits are moved, whatever type they are of.
const TWO_BYTES: u32 = 1;

/// `CU_TENSOR_MAP_INTERLEAVE_NONE`, and `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`: zeros outside.
const NONE: u32 = 0;

/// `CU_TENSOR_MAP_SWIZZLE_128B`
const SWIZZLE: u32 = 3;

/// `CU_TENSOR_MAP_L2_PROMOTION_L2_128B`
const PROMOTION: u32 = 2;

/// The map over a slot of so many bytes at an address.
pub(super) fn encode(map: &TensorMap, address: u64, bytes: u64) -> Result<Encoded, CudaError> {
    let wrong = || CudaError::Inconsistent(format!("a tensor map that is not in its slot of {bytes} bytes: {map:?}"));
    let TensorMap { first, extents, strides, shape, .. } = map;
    let rank = extents.len();
    if !(1..=5).contains(&rank) || strides.len() + 1 != rank || shape.len() != rank {
        return Err(wrong());
    }
    let all = std::iter::once(&1).chain(strides);
    let last = extents
        .iter()
        .zip(all)
        .try_fold(*first, |sum, (extent, stride)| sum.checked_add(extent.checked_sub(1)?.checked_mul(*stride)?));
    let end = last.and_then(|last| last.checked_add(1)?.checked_mul(2)).filter(|end| *end <= bytes);
    end.ok_or_else(wrong)?;
    let strides: Vec<u64> = strides.iter().map(|s| 2 * s).collect();
    let ones = vec![1u32; rank];
    let place = (address + 2 * first) as *mut c_void;
    let mut encoded = Encoded([0; 16]);
    // SAFETY: the library was found when the device was opened.
    let library = unsafe { sys::culib() };
    // SAFETY: the type is that of the function of this name in the driver's header, whose enums are of 4 bytes.
    let function = unsafe { library.get::<Encode>(b"cuTensorMapEncodeTiled") };
    let missing = |_| CudaError::Driver {
        doing: "makes a tensor map",
        what: "it has no cuTensorMapEncodeTiled, which drivers for CUDA 12 and later have; update the driver".into(),
    };
    let encode = function.map_err(missing)?;
    // SAFETY: all lists have `rank` elements (the strides one fewer), and the map that is written to has the driver's layout.
    let status = unsafe {
        encode(
            &raw mut encoded,
            TWO_BYTES,
            rank as u32,
            place,
            extents.as_ptr(),
            strides.as_ptr(),
            shape.as_ptr(),
            ones.as_ptr(),
            NONE,
            SWIZZLE,
            PROMOTION,
            NONE,
        )
    };
    let fails = |e: DriverError| CudaError::Driver { doing: "makes a tensor map", what: meaning(e) };
    status.result().map_err(fails)?;
    Ok(encoded)
}
