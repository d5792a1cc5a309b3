//! External data: where a tensor's bytes lie beside the model file.
//!
//! Invariant: a [`Request`] names a file below the model's folder (relative, no `..`) and a range that does not
//! overflow. Nothing here touches a file: the caller hands in a closure that does, and may refuse.

use super::problem::shown;
use super::proto::StringStringEntryProto;
use prost::bytes::Bytes;
use thiserror::Error;

/// Gives the whole content of a file, by its path relative to the model's folder with `/` between components.
/// An error is a sentence for the user. The caller also refuses links that lead out of the folder.
pub type ExternalData<'a> = dyn Fn(&str) -> Result<Bytes, String> + 'a;

/// The closure for models that may have no external data, such as bytes that came without a folder.
///
/// # Errors
/// Always.
pub fn none(location: &str) -> Result<Bytes, String> {
    Err(format!("external data file {} cannot be read: the model is not in a folder", shown(location)))
}

/// A tensor's place in an external file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path relative to the model's folder, components joined by `/`.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; to be taken from the tensor's shape when absent.
    pub length: Option<u64>,
    /// SHA-1 of the whole file in hex, as the model gives it. Kiln does not verify it.
    pub checksum: Option<String>,
}

/// The `external_data` entries of a tensor are not acceptable, or the file does not have what they promise.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExternalError {
    /// A key that ONNX does not define.
    #[error("unknown external data key {}", shown(.0))]
    UnknownKey(String),
    /// A key twice.
    #[error("external data key {} appears twice", shown(.0))]
    DuplicateKey(String),
    /// No location.
    #[error("external data without a location")]
    NoLocation,
    /// The location is not a path below the model's folder.
    #[error("external data location {} {why}", shown(.location))]
    Location {
        /// As in the model.
        location: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Offset or length is not a number that fits.
    #[error("external data {key} {} is not a number of bytes", shown(.value))]
    Number {
        /// `offset` or `length`.
        key: &'static str,
        /// As in the model.
        value: String,
    },
    /// The range ends after the file does.
    #[error("external data file {} has {found} bytes, the tensor asks for bytes {offset} to {end}", shown(.location))]
    OutOfFile {
        /// The file.
        location: String,
        /// First byte asked for.
        offset: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Length of the file.
        found: u64,
    },
    /// The length given is not the one that shape and type ask for.
    #[error("external data length {given} does not fit the tensor, which needs {needed} bytes")]
    Length {
        /// As in the model.
        given: u64,
        /// By shape and type.
        needed: u64,
    },
    /// The caller could not give the file.
    #[error("{0}")]
    File(String),
}

/// Checks the path and joins its components by `/`, leaving out `.`.
fn location(text: &str) -> Result<String, ExternalError> {
    let refuse = |why| Err(ExternalError::Location { location: text.to_owned(), why });
    if text.chars().any(char::is_control) {
        return refuse("contains control characters");
    }
    if text.starts_with('/') || text.starts_with('\\') || text.as_bytes().get(1) == Some(&b':') {
        return refuse("is an absolute path; it must be relative to the model's folder");
    }
    if text.contains('\\') {
        return refuse("contains a backslash; components are separated by `/`");
    }
    let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return refuse("leads out of the model's folder");
    }
    if parts.is_empty() {
        return refuse("names no file");
    }
    Ok(parts.join("/"))
}

/// The checked request that the key-value entries of a tensor make.
///
/// # Errors
/// See [`ExternalError`].
pub fn request(entries: &[StringStringEntryProto]) -> Result<Request, ExternalError> {
    let (mut place, mut offset, mut length, mut checksum) = (None, None, None, None);
    let number = |key, value: &str| {
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        match value.parse::<u64>() {
            Ok(n) if digits && i64::try_from(n).is_ok() => Ok(n),
            _ => Err(ExternalError::Number { key, value: value.to_owned() }),
        }
    };
    for entry in entries {
        let twice = match entry.key.as_str() {
            "location" => place.replace(location(&entry.value)?).is_some(),
            "offset" => offset.replace(number("offset", &entry.value)?).is_some(),
            "length" => length.replace(number("length", &entry.value)?).is_some(),
            "checksum" => checksum.replace(entry.value.clone()).is_some(),
            other => return Err(ExternalError::UnknownKey(other.to_owned())),
        };
        if twice {
            return Err(ExternalError::DuplicateKey(entry.key.clone()));
        }
    }
    let location = place.ok_or(ExternalError::NoLocation)?;
    Ok(Request { location, offset: offset.unwrap_or(0), length, checksum })
}

impl Request {
    /// The `needed` bytes of a tensor, as a slice of the file that `data` gives.
    ///
    /// # Errors
    /// The length given is another, the file is too short, or `data` refuses.
    pub fn fetch(&self, needed: u64, data: &ExternalData) -> Result<Bytes, ExternalError> {
        if let Some(given) = self.length.filter(|&l| l != needed) {
            return Err(ExternalError::Length { given, needed });
        }
        let file = data(&self.location).map_err(ExternalError::File)?;
        let found = file.len() as u64;
        let end = self.offset.saturating_add(needed);
        match (usize::try_from(self.offset), usize::try_from(end)) {
            (Ok(from), Ok(to)) if end <= found && from <= to => Ok(file.slice(from..to)),
            _ => Err(ExternalError::OutOfFile { location: self.location.clone(), offset: self.offset, end, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(pairs: &[(&str, &str)]) -> Vec<StringStringEntryProto> {
        pairs.iter().map(|(k, v)| StringStringEntryProto { key: (*k).into(), value: (*v).into() }).collect()
    }

    #[test]
    fn good_entries() {
        let r = request(&entries(&[("location", "./a//w.bin"), ("offset", "4096"), ("length", "8")])).unwrap();
        assert_eq!(r, Request { location: "a/w.bin".into(), offset: 4096, length: Some(8), checksum: None });
    }

    #[test]
    fn bad_entries() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "external data without a location"),
            (&[("location", "")], "external data location \"\" names no file"),
            (&[("location", "../w")], "external data location \"../w\" leads out of the model's folder"),
            (&[("location", "a/../../w")], "external data location \"a/../../w\" leads out of the model's folder"),
            (
                &[("location", "/etc/passwd")],
                "external data location \"/etc/passwd\" is an absolute path; it must be relative to the model's folder",
            ),
            (
                &[("location", "C:w")],
                "external data location \"C:w\" is an absolute path; it must be relative to the model's folder",
            ),
            (
                &[("location", "a\\w")],
                "external data location \"a\\\\w\" contains a backslash; components are separated by `/`",
            ),
            (&[("location", "a\0")], "external data location \"a\\0\" contains control characters"),
            (&[("location", "w"), ("location", "v")], "external data key \"location\" appears twice"),
            (&[("location", "w"), ("offset", "-1")], "external data offset \"-1\" is not a number of bytes"),
            (&[("location", "w"), ("offset", "+1")], "external data offset \"+1\" is not a number of bytes"),
            (
                &[("location", "w"), ("length", "99999999999999999999")],
                "external data length \"99999999999999999999\" is not a number of bytes",
            ),
            (&[("location", "w"), ("mode", "x")], "unknown external data key \"mode\""),
        ];
        for (pairs, expected) in cases {
            assert_eq!(request(&entries(pairs)).unwrap_err().to_string(), *expected);
        }
    }

    #[test]
    fn ranges() {
        let file = |_: &str| Ok(Bytes::from_static(b"0123456789"));
        let r = Request { location: "w".into(), offset: 4, length: None, checksum: None };
        assert_eq!(r.fetch(6, &file).unwrap().as_ref(), b"456789");
        assert!(matches!(r.fetch(7, &file), Err(ExternalError::OutOfFile { .. })));
        assert!(matches!(Request { length: Some(5), ..r.clone() }.fetch(6, &file), Err(ExternalError::Length { .. })));
        assert!(matches!(
            Request { offset: u64::MAX, ..r.clone() }.fetch(6, &file),
            Err(ExternalError::OutOfFile { .. })
        ));
        assert_eq!(
            r.fetch(6, &none).unwrap_err().to_string(),
            "external data file \"w\" cannot be read: the model is not in a folder"
        );
    }
}
