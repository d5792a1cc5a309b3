//! `Cast` and `CastLike`.

use super::support::cast_unsaturated;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use crate::onnx::tensor::element_type;
use kiln_ir::{Class, DType};

pub(super) const OPS: &[Spec] = &[
    onnx("Cast", 6, &["to", "saturate", "round_mode"], |cx| {
        let to = cx.node.int("to")?;
        let to = i32::try_from(to).map_err(|_| cx.node.attribute_value("to", format!("{to} is no element type")))?;
        let to = match element_type(to) {
            Ok((_, dtype)) => dtype,
            Err(e) if e.is_unsupported() => return Err(Failure::unsupported(e.to_string())),
            Err(e) => return Err(cx.node.attribute_value("to", e.to_string()).into()),
        };
        cast(cx, to)
    }),
    onnx("CastLike", 15, &["saturate", "round_mode"], |cx| {
        let to = cx.dtype(cx.input(1)?);
        cast(cx, to)
    }),
];

fn cast(cx: &mut Context, to: DType) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let from = cx.dtype(x);
    if from == to {
        return Ok(x.into());
    }
    if matches!(from.class(), Class::Str | Class::Complex) || matches!(to.class(), Class::Str | Class::Complex) {
        return Err(Failure::unsupported(format!("conversion from {from} to {to} is not supported")));
    }
    let eight = matches!(to, DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ);
    if eight && !cx.node.bool_or("saturate", true)? {
        let wide = cx.cast(x, DType::F32)?;
        return Ok(cx.map(&[wide], |b, a| cast_unsaturated(b, to, a[0]))?.into());
    }
    if to == DType::F8E8M0 && cx.node.string_or("round_mode", "up")? != "up" {
        return Err(Failure::unsupported("rounding to f8e8m0 other than up is not supported"));
    }
    if matches!(to, DType::I2 | DType::I4 | DType::U2 | DType::U4) && from.is_float() {
        // What does not fit the narrow types keeps its low bits, as in ONNX's reference.
        let wide = cx.cast(x, DType::I32)?;
        return Ok(cx.cast(wide, to)?.into());
    }
    Ok(cx.cast(x, to)?.into())
}
