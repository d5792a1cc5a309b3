//! Images as calibration data.
//!
//! Invariant: an image becomes the input of a model of images by what the options say alone: scaled so that it covers the input's height and
//! width, cut to them at its centre, and each channel `(v / 255 - mean) / deviation`.

use crate::Error;
use crate::data::Wanted;
use kiln_frontend::onnx::model::{Dim, TensorType, ValueType};
use kiln_ir::{DType, Tensor};
use std::path::Path;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Most pixels of a side: an image of more is no photograph.
const MOST_SIDE: usize = 1 << 14;

/// Most bytes that an image may take.
const MOST_BYTES: usize = 1 << 30;

/// What is done with the values of a channel, from 0 to 1, where a model takes floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// Taken from them: for each channel, or one for all.
    pub mean: Vec<f32>,
    /// What they are divided by then.
    pub deviation: Vec<f32>,
}

impl Default for Channels {
    fn default() -> Channels {
        Channels { mean: vec![0.0], deviation: vec![1.0] }
    }
}

/// Whether a file is an image, by its name.
pub fn is_image(path: &Path) -> bool {
    let kinds = ["png", "jpg", "jpeg"];
    path.extension().is_some_and(|e| kinds.iter().any(|kind| e.eq_ignore_ascii_case(kind)))
}

/// Pixels in rows, three bytes each: red, green, blue.
struct Pixels {
    width: usize,
    height: usize,
    values: Vec<u8>,
}

/// How a model takes an image.
struct Place {
    /// Whether its elements are bytes from 0 to 255, not floats.
    bytes: bool,
    channels: usize,
    /// Whether the channels come before the rows.
    first: bool,
    /// Height and width; nothing where they are the image's.
    size: [Option<usize>; 2],
}

/// The input that an image is for a model with one input of images: f32 or u8, `[1, channels, height, width]` or with the channels last, 3 or 1
/// of them, without the first axis too.
///
/// # Errors
/// [`Error::Usage`] where the model has other inputs, [`Error::Data`] for a file that is no image.
pub fn input(path: &Path, bytes: &[u8], wanted: &[Wanted], channels: &Channels) -> Result<Tensor, Error> {
    let [one] = wanted else {
        return Err(Error::Usage(format!("images are for models with one input; this one has {}", wanted.len())));
    };
    let unsuited = || Error::Usage(format!("input {:?} is {}, which takes no image", one.name, one.ty));
    let ValueType::Tensor(ty) = &one.ty else { return Err(unsuited()) };
    let place = Place::of(ty).ok_or_else(unsuited)?;
    let fits = |list: &[f32]| list.len() == 1 || list.len() == place.channels;
    if !fits(&channels.mean) || !fits(&channels.deviation) {
        return Err(Error::Usage(format!("the model's images have {} channels", place.channels)));
    }
    let fail = |message: String| Error::data(path.display(), message);
    let pixels = decoded(bytes).map_err(|e| fail(format!("it cannot be decoded: {e}")))?;
    let [height, width] = [place.size[0].unwrap_or(pixels.height), place.size[1].unwrap_or(pixels.width)];
    let planes = covered(&pixels, height, width);
    let values = |c: usize| planes.get(c).map(Vec::as_slice).unwrap_or_default();
    // Luma of ITU-R BT.601.
    let grey: Vec<f32>;
    let mut made: Vec<&[f32]> = (0..3).map(values).collect();
    if place.channels == 1 {
        let weigh = |((r, g), b): ((&f32, &f32), &f32)| 0.299 * r + 0.587 * g + 0.114 * b;
        grey = values(0).iter().zip(values(1)).zip(values(2)).map(weigh).collect();
        made = vec![&grey];
    }
    let of = |list: &[f32], c: usize| list.get(c).or(list.first()).copied().unwrap_or_default();
    let element = |c: usize, n: usize| {
        let value = made.get(c).and_then(|plane| plane.get(n)).copied().unwrap_or_default();
        (value / 255.0 - of(&channels.mean, c)) / of(&channels.deviation, c)
    };
    let (count, each) = (height * width, place.channels);
    let at = |n: usize| if place.first { (n / count, n % count) } else { (n % each, n / each) };
    let mut shape = if place.first { vec![each, height, width] } else { vec![height, width, each] };
    if ty.shape.as_ref().is_some_and(|dims| dims.len() == 4) {
        shape.insert(0, 1);
    }
    let tensor = if place.bytes {
        let byte = |(c, n): (usize, usize)| made.get(c).and_then(|p| p.get(n)).map_or(0, |v| v.round() as u8);
        Tensor::new(DType::U8, shape, (0..count * each).map(|n| byte(at(n))).collect::<Vec<u8>>())
    } else {
        Tensor::from_f32(&shape, &(0..count * each).map(at).map(|(c, n)| element(c, n)).collect::<Vec<f32>>())
    };
    tensor.map_err(|e| Error::Internal(e.to_string()))
}

impl Place {
    fn of(ty: &TensorType) -> Option<Place> {
        if !matches!(ty.dtype, DType::F32 | DType::U8) {
            return None;
        }
        let dims = ty.shape.as_ref()?;
        let dims = match dims.as_slice() {
            [batch, rest @ ..] if rest.len() == 3 && !matches!(batch, Dim::Fixed(n) if *n != 1) => rest,
            rest if rest.len() == 3 => rest,
            _ => return None,
        };
        let fixed = |n: usize| if let Some(Dim::Fixed(extent)) = dims.get(n) { Some(*extent) } else { None };
        let channels = |n: usize| fixed(n).filter(|extent| matches!(extent, 1 | 3));
        let (channels, first) = channels(0).map(|c| (c, true)).or_else(|| channels(2).map(|c| (c, false)))?;
        let size = if first { [fixed(1), fixed(2)] } else { [fixed(0), fixed(1)] };
        let held = size.iter().all(|side| side.is_none_or(|side| (1..=MOST_SIDE).contains(&side)));
        held.then_some(Place { bytes: ty.dtype == DType::U8, channels, first, size })
    }
}

/// The pixels of a PNG or JPEG file.
fn decoded(bytes: &[u8]) -> Result<Pixels, String> {
    if bytes.starts_with(b"\x89PNG") { of_png(bytes) } else { of_jpeg(bytes) }
}

fn of_png(bytes: &[u8]) -> Result<Pixels, String> {
    let limits = png::Limits { bytes: MOST_BYTES };
    let mut decoder = png::Decoder::new_with_limits(std::io::Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width > MOST_SIDE || height > MOST_SIDE {
        return Err(format!("it has {width} x {height} pixels"));
    }
    let size = reader.output_buffer_size().filter(|&size| size <= MOST_BYTES).ok_or("it is too large")?;
    let mut raw = vec![0; size];
    let frame = reader.next_frame(&mut raw).map_err(|e| e.to_string())?;
    let samples = frame.color_type.samples();
    let pixel = |p: &[u8]| match *p {
        [r, g, b, ..] => [r, g, b],
        [v, ..] => [v; 3],
        [] => [0; 3],
    };
    let values = raw.chunks_exact(samples).take(width * height).flat_map(pixel).collect();
    Ok(Pixels { width, height, values })
}

fn of_jpeg(bytes: &[u8]) -> Result<Pixels, String> {
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let options = options.set_max_width(MOST_SIDE).set_max_height(MOST_SIDE);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let values = decoder.decode().map_err(|e| format!("{e:?}"))?;
    let info = decoder.info().ok_or("it has no header")?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    match values.len() == width * height * 3 {
        true => Ok(Pixels { width, height, values }),
        false => Err(format!("{} bytes are no image of {width} x {height}", values.len())),
    }
}

/// What each of `to` places along an axis of `from` is a weighted mean of: the first place, and the weights from there on. The axis is scaled by
/// `scale` and cut at its centre; weights fall linearly, over as many places as become one where it is made smaller.
fn weights(from: usize, to: usize, scale: f64) -> Vec<(usize, Vec<f64>)> {
    let (start, support) = ((from as f64 - to as f64 / scale) / 2.0, (1.0 / scale).max(1.0));
    let of = |n: usize| {
        let centre = start + (n as f64 + 0.5) / scale;
        let least = ((centre - support).ceil().max(0.0) as usize).min(from.saturating_sub(1));
        let most = ((centre + support).ceil().max(0.0) as usize).clamp(least + 1, from.max(least + 1));
        let weight = |at: usize| (1.0 - ((at as f64 + 0.5 - centre) / support).abs()).max(0.0);
        let mut all: Vec<f64> = (least..most).map(weight).collect();
        let sum: f64 = all.iter().sum();
        match sum > 0.0 {
            true => all.iter_mut().for_each(|w| *w /= sum),
            // A place at the very border.
            false => all = vec![1.0],
        }
        (least, all)
    };
    (0..to).map(of).collect()
}

/// Three planes of `height x width` values from 0 to 255.
fn covered(pixels: &Pixels, height: usize, width: usize) -> Vec<Vec<f32>> {
    let scale = (height as f64 / pixels.height.max(1) as f64).max(width as f64 / pixels.width.max(1) as f64);
    let (rows, columns) = (weights(pixels.height, height, scale), weights(pixels.width, width, scale));
    let value = |c: usize, row: usize, column: usize| {
        pixels.values.get((row * pixels.width + column) * 3 + c).map_or(0.0, |&v| f64::from(v))
    };
    let plane = |c: usize| {
        // Along the columns first: each row once.
        let mut along = vec![0.0; pixels.height * width];
        for (row, out) in along.chunks_mut(width.max(1)).enumerate() {
            for ((first, weights), out) in columns.iter().zip(out) {
                *out = weights.iter().enumerate().map(|(n, w)| w * value(c, row, first + n)).sum::<f64>();
            }
        }
        let element = |n: usize| {
            let (first, weights) = &rows[n / width];
            let at = |k: usize| along.get((first + k) * width + n % width).copied().unwrap_or_default();
            weights.iter().enumerate().map(|(k, w)| w * at(k)).sum::<f64>() as f32
        };
        (0..height * width).map(element).collect()
    };
    (0..3).map(plane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(dtype: DType, dims: &[usize]) -> Vec<Wanted> {
        let shape = Some(dims.iter().map(|&n| Dim::Fixed(n)).collect());
        vec![Wanted { name: "image".into(), ty: ValueType::Tensor(TensorType { dtype, shape }) }]
    }

    /// A PNG file of grey values.
    fn png(width: u32, height: u32, values: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(values).unwrap();
        bytes
    }

    fn made(bytes: &[u8], wanted: &[Wanted], channels: &Channels) -> Tensor {
        input(Path::new("a.png"), bytes, wanted, channels).unwrap()
    }

    #[test]
    fn images_are_scaled_cut_and_normalized() {
        // Halved: each place is the mean of its neighbours, weighted; the outer columns of four are cut away.
        let grey = png(8, 4, &[0, 0, 60, 60, 120, 120, 0, 0].repeat(4));
        let all = Channels::default();
        let same = made(&grey, &wanted(DType::U8, &[1, 1, 4, 8]), &all);
        assert_eq!(same.bytes(), &[0, 0, 60, 60, 120, 120, 0, 0].repeat(4));
        let cut = made(&grey, &wanted(DType::U8, &[1, 4, 4, 1]), &all);
        assert_eq!(cut.bytes(), &[60, 60, 120, 120].repeat(4));
        let half = made(&grey, &wanted(DType::F32, &[1, 3, 2, 2]), &all).to_f32().unwrap();
        // 0.125 * 0 + 0.375 * 60 + 0.375 * 60 + 0.125 * 120, and 0.125 * 60 + 0.75 * 120.
        let want: Vec<f32> = [60.0, 97.5].repeat(6).iter().map(|v| v / 255.0).collect();
        assert!(half.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "{half:?} and not {want:?}");
        let channels = Channels { mean: vec![0.5, 0.0, 0.0], deviation: vec![0.25] };
        let normal = made(&grey, &wanted(DType::F32, &[3, 4, 8]), &channels).to_f32().unwrap();
        assert_eq!((normal.len(), normal[0], normal[32]), (96, -2.0, 0.0));
    }

    #[test]
    fn what_is_no_image_is_said() {
        let fails = |bytes: &[u8], wanted: &[Wanted], channels: &Channels| {
            input(Path::new("a.png"), bytes, wanted, channels).unwrap_err().to_string()
        };
        let (one, all) = (wanted(DType::F32, &[1, 3, 2, 2]), Channels::default());
        let whole = png(2, 2, &[1, 2, 3, 4]);
        for cut in 0..whole.len() - 24 {
            assert!(fails(&whole[..cut], &one, &all).contains("cannot be decoded"), "{cut}");
        }
        assert!(fails(b"\xff\xd8\xff\xe0 no", &one, &all).contains("cannot be decoded"));
        assert!(fails(&whole, &wanted(DType::F32, &[1, 8]), &all).contains("takes no image"));
        assert!(fails(&whole, &[one.clone(), one.clone()].concat(), &all).contains("one input"));
        let channels = Channels { mean: vec![0.0; 2], ..Channels::default() };
        assert!(fails(&whole, &one, &channels).contains("3 channels"));
    }
}
