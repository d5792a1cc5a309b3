//! Files of a library: shared object, relocatable object, archive of one.
//!
//! Invariant: the bytes are a function of image and names; a shared object needs no other library and has neither undefined
//! symbols nor relocations, so its pages of code, data and weights are shared by all processes that map it. The weights come
//! last in a file and are not held: whoever writes it appends them.
//!
//! The format is that of the System V ABI and its x86-64 supplement, the archive's that of GNU ar.

use super::{Image, LibraryError, Part, patch};
use object::elf;
use object::endian::Endianness;
use object::write::StringId;
use object::write::elf::{FileHeader, ProgramHeader, Rel, SectionHeader, Sym, Writer};

/// A file whose last part are the weights.
#[derive(Clone, Debug)]
pub struct File {
    /// What comes before the weights.
    pub head: Vec<u8>,
    /// Bytes of the weights.
    pub weights: u64,
    /// What comes after them.
    pub tail: Vec<u8>,
}

impl File {
    /// The size of the whole file in bytes.
    pub fn bytes(&self) -> u64 {
        (self.head.len() as u64).saturating_add(self.weights).saturating_add(self.tail.len() as u64)
    }
}

/// Pages of x86-64.
const PAGE: u64 = 4096;

/// Alignment of sections that code reads and is.
const LINE: u64 = 64;

/// A linker places weights before code, and distances between the two have 32 bits.
const MOST_LINKED: u64 = 1 << 30;

fn failed(e: object::write::Error) -> LibraryError {
    LibraryError::TooLarge(format!("the library's file: {e}"))
}

fn header(kind: elf::FileType) -> FileHeader {
    FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: kind,
        e_machine: elf::EM_X86_64,
        e_entry: 0,
        e_flags: Default::default(),
    }
}

/// The names of exported functions with their symbols.
fn exported(image: &Image, prefix: &str) -> Vec<(String, u64, u64)> {
    let exported = image.functions.iter().filter(|f| f.exported);
    exported.map(|f| (format!("{prefix}_{}", f.name), f.offset, f.bytes)).collect()
}

fn symbol(name: u32, kind: elf::SymbolInfo, section: u32, value: u64, size: u64) -> Sym {
    Sym {
        section: Some(section),
        st_name: name,
        st_info: kind,
        st_other: Default::default(),
        st_shndx: Default::default(),
        st_value: value,
        st_size: size,
    }
}

/// A section that holds bytes of the program.
fn section(name: u32, flags: elf::SectionFlags, addr: u64, offset: u64, size: u64, align: u64) -> SectionHeader {
    SectionHeader {
        sh_name: name,
        sh_type: elf::SHT_PROGBITS,
        sh_flags: flags,
        sh_addr: addr,
        sh_offset: offset,
        sh_size: size,
        sh_link: 0,
        sh_info: 0,
        sh_addralign: align,
        sh_entsize: 0,
    }
}

/// A segment that lies in memory as it lies in the file.
fn segment(kind: elf::ProgramType, flags: elf::ProgramFlags, start: u64, bytes: u64, align: u64) -> ProgramHeader {
    ProgramHeader {
        p_type: kind,
        p_flags: flags,
        p_offset: start,
        p_vaddr: start,
        p_paddr: start,
        p_filesz: bytes,
        p_memsz: bytes,
        p_align: align,
    }
}

/// A shared object whose functions are called `PREFIX_NAME`.
///
/// # Errors
/// [`LibraryError::TooLarge`].
pub fn shared_object(image: &Image, prefix: &str, soname: &str) -> Result<File, LibraryError> {
    let exports = exported(image, prefix);
    let mut head = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut head);
    let w = &mut writer;
    let with_weights = image.weights > 0;
    w.reserve_file_header();
    w.reserve_program_headers(if with_weights { 6 } else { 5 });

    // What loaders read, then data: readable only. Addresses are offsets in the file.
    let names: Vec<StringId> = exports.iter().map(|(name, ..)| w.add_dynamic_string(name.as_bytes())).collect();
    let soname = w.add_dynamic_string(soname.as_bytes());
    let symbols = exports.len() as u32 + 1;
    w.reserve_hash_section_index();
    let hash = w.reserve_hash(symbols, symbols);
    for _ in &exports {
        w.reserve_dynamic_symbol_index();
    }
    w.reserve_dynsym_section_index();
    let dynsym = w.reserve_dynsym();
    w.reserve_dynstr_section_index();
    let dynstr = w.reserve_dynstr().map_err(failed)?;
    let data = w.reserve(image.data.len() as u64, LINE);
    let data_end = w.reserved_len();
    let rodata_name = w.add_section_name(b".rodata");
    w.reserve_section_index();
    let code = w.reserve(image.code.len() as u64, PAGE);
    let text_name = w.add_section_name(b".text");
    let text_index = w.reserve_section_index();
    // Loaders of old write addresses into this table, so it has a page that may be written.
    w.reserve(0, PAGE);
    const DYNAMIC: usize = 7;
    let dynamic = w.reserve_dynamic(DYNAMIC);
    let dynamic_end = w.reserved_len();
    w.reserve_dynamic_section_index();
    let weights_name = with_weights.then(|| {
        w.reserve_section_index();
        w.add_section_name(b".rodata.weights")
    });
    w.reserve_shstrtab_section_index();
    w.reserve_shstrtab().map_err(failed)?;
    w.reserve_section_headers();
    let weights = w.reserve(0, PAGE);

    w.write_file_header(&header(elf::ET_DYN)).map_err(failed)?;
    w.write_align_program_headers();
    let read = elf::PF_R;
    w.write_program_header(&segment(elf::PT_LOAD, read, 0, data_end, PAGE));
    w.write_program_header(&segment(elf::PT_LOAD, read | elf::PF_X, code, image.code.len() as u64, PAGE));
    w.write_program_header(&segment(elf::PT_LOAD, read | elf::PF_W, dynamic, dynamic_end - dynamic, PAGE));
    if with_weights {
        w.write_program_header(&segment(elf::PT_LOAD, read, weights, image.weights, PAGE));
    }
    w.write_program_header(&segment(elf::PT_DYNAMIC, read | elf::PF_W, dynamic, dynamic_end - dynamic, 8));
    w.write_program_header(&segment(elf::PT_GNU_STACK, read | elf::PF_W, 0, 0, 16));
    let hashes: Vec<u32> = exports.iter().map(|(name, ..)| elf::hash(name.as_bytes())).collect();
    let hash_of = |n: u32| n.checked_sub(1).and_then(|n| hashes.get(n as usize).copied());
    w.write_hash(symbols, symbols, hash_of);
    w.write_null_dynamic_symbol();
    let function = elf::SymbolInfo::new(elf::STB_GLOBAL, elf::STT_FUNC);
    for (name, (_, offset, bytes)) in names.iter().zip(&exports) {
        let name = w.dynamic_string_offset(Some(*name));
        w.write_dynamic_symbol(&symbol(name, function, text_index.0, code + offset, *bytes));
    }
    w.write_dynstr();
    let dynstr_bytes = u64::from(w.dynstr_len());
    w.pad_until(data);
    w.write(&image.data);
    w.pad_until(code);
    let mut linked = image.code.clone();
    for reference in &image.references {
        let part = match reference.to {
            Part::Code => code,
            Part::Data => data,
            Part::Weights => weights,
        };
        // Both ends of the distance are given from the start of the code.
        patch(&mut linked, reference.at, part as i64 - code as i64 + reference.addend)?;
    }
    w.write(&linked);
    w.pad_until(dynamic);
    w.write_align_dynamic();
    w.write_dynamic_string(elf::DT_SONAME, soname).map_err(failed)?;
    let entries = [
        (elf::DT_HASH, hash),
        (elf::DT_STRTAB, dynstr),
        (elf::DT_SYMTAB, dynsym),
        (elf::DT_STRSZ, dynstr_bytes),
        (elf::DT_SYMENT, 24),
    ];
    for (tag, value) in entries {
        w.write_dynamic(tag, value).map_err(failed)?;
    }
    w.write_dynamic(elf::DT_NULL, 0).map_err(failed)?;
    w.write_shstrtab();
    w.write_null_section_header();
    w.write_hash_section_header(hash);
    w.write_dynsym_section_header(dynsym, 1);
    w.write_dynstr_section_header(dynstr);
    let name = w.section_name_offset(Some(rodata_name));
    w.write_section_header(&section(name, elf::SHF_ALLOC, data, data, image.data.len() as u64, LINE));
    let name = w.section_name_offset(Some(text_name));
    let flags = elf::SHF_ALLOC | elf::SHF_EXECINSTR;
    w.write_section_header(&section(name, flags, code, code, image.code.len() as u64, LINE));
    w.write_dynamic_section_header(dynamic);
    if let Some(name) = weights_name {
        let name = w.section_name_offset(Some(name));
        w.write_section_header(&section(name, elf::SHF_ALLOC, weights, weights, image.weights, PAGE));
    }
    w.write_shstrtab_section_header();
    w.pad_until(weights);
    Ok(File { head, weights: image.weights, tail: vec![] })
}

/// A relocatable object whose functions are called `PREFIX_NAME`.
///
/// # Errors
/// [`LibraryError::TooLarge`], also where the weights are more than a linker can place.
pub fn object(image: &Image, prefix: &str) -> Result<File, LibraryError> {
    if image.weights > MOST_LINKED {
        return Err(LibraryError::TooLarge(format!(
            "the weights have {} bytes, more than {MOST_LINKED}, which linkers cannot place; keep them in a file of their own \
             with --weights",
            image.weights
        )));
    }
    let mut head = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut head);
    let w = &mut writer;
    let with_weights = image.weights > 0;
    // Symbols: the sections, kernels and helpers by name for profilers, then what is exported.
    let (local, global): (Vec<_>, Vec<_>) = image.functions.iter().partition(|f| !f.exported);
    let functions: Vec<_> = local.iter().chain(&global).collect();
    let names: Vec<String> = functions.iter().map(|f| format!("{prefix}_{}", f.name)).collect();
    w.reserve_file_header();
    let text_name = w.add_section_name(b".text");
    let text = w.reserve_section_index();
    let rodata_name = w.add_section_name(b".rodata");
    let rodata = w.reserve_section_index();
    let note_name = w.add_section_name(b".note.GNU-stack");
    w.reserve_section_index();
    let rela_name = w.add_section_name(b".rela.text");
    w.reserve_section_index();
    let symtab_index = w.reserve_symtab_section_index();
    w.reserve_strtab_section_index();
    let weights_section = with_weights.then(|| (w.add_section_name(b".rodata.weights"), w.reserve_section_index()));
    w.reserve_shstrtab_section_index();
    let code = w.reserve(image.code.len() as u64, LINE);
    let data = w.reserve(image.data.len() as u64, LINE);
    let data_symbol = w.reserve_symbol_index(Some(rodata));
    let weights_symbol = weights_section.map(|(_, index)| w.reserve_symbol_index(Some(index)));
    for _ in &functions {
        w.reserve_symbol_index(Some(text));
    }
    let ids: Vec<StringId> = names.iter().map(|name| w.add_string(name.as_bytes())).collect();
    w.reserve_symtab();
    w.reserve_strtab().map_err(failed)?;
    let relocations = w.reserve_relocations(image.references.len(), true);
    w.reserve_shstrtab().map_err(failed)?;
    w.reserve_section_headers();
    let weights = w.reserve(0, LINE);

    w.write_file_header(&header(elf::ET_REL)).map_err(failed)?;
    w.pad_until(code);
    w.write(&image.code);
    w.pad_until(data);
    w.write(&image.data);
    w.write_null_symbol();
    let of_section = elf::SymbolInfo::new(elf::STB_LOCAL, elf::STT_SECTION);
    w.write_symbol(&symbol(0, of_section, rodata.0, 0, 0));
    if let Some((_, index)) = weights_section {
        w.write_symbol(&symbol(0, of_section, index.0, 0, 0));
    }
    for (id, function) in ids.iter().zip(&functions) {
        let bind = if function.exported { elf::STB_GLOBAL } else { elf::STB_LOCAL };
        let name = w.string_offset(Some(*id));
        let kind = elf::SymbolInfo::new(bind, elf::STT_FUNC);
        w.write_symbol(&symbol(name, kind, text.0, function.offset, function.bytes));
    }
    w.write_strtab();
    w.write_align_relocation();
    for reference in &image.references {
        let to = match reference.to {
            Part::Data => Some(data_symbol),
            Part::Weights => weights_symbol,
            Part::Code => None,
        };
        let Some(to) = to else {
            return Err(LibraryError::TooLarge(format!("a reference to {:?}, which is not there", reference.to)));
        };
        let (r_offset, r_addend) = (reference.at, reference.addend);
        w.write_relocation(true, &Rel { r_offset, r_sym: to.0, r_type: elf::R_X86_64_PC32, r_addend });
    }
    w.write_shstrtab();
    w.write_null_section_header();
    let name = w.section_name_offset(Some(text_name));
    let flags = elf::SHF_ALLOC | elf::SHF_EXECINSTR;
    w.write_section_header(&section(name, flags, 0, code, image.code.len() as u64, LINE));
    let name = w.section_name_offset(Some(rodata_name));
    w.write_section_header(&section(name, elf::SHF_ALLOC, 0, data, image.data.len() as u64, LINE));
    // Says that no code runs on the stack.
    let name = w.section_name_offset(Some(note_name));
    w.write_section_header(&section(name, Default::default(), 0, data, 0, 1));
    w.write_relocation_section_header(rela_name, text, symtab_index, relocations, image.references.len(), true);
    w.write_symtab_section_header(2 + u32::from(with_weights) + local.len() as u32);
    w.write_strtab_section_header();
    if let Some((name, _)) = weights_section {
        let name = w.section_name_offset(Some(name));
        w.write_section_header(&section(name, elf::SHF_ALLOC, 0, weights, image.weights, LINE));
    }
    w.write_shstrtab_section_header();
    w.pad_until(weights);
    Ok(File { head, weights: image.weights, tail: vec![] })
}

/// Bytes of a member's header in an archive, and of the archive's own.
const MEMBER: usize = 60;
const MAGIC: &[u8] = b"!<arch>\n";

/// An archive with the object as its only member, and an index of its symbols.
///
/// # Errors
/// As [`object()`]; [`LibraryError::TooLarge`] where the member is larger than an archive can say.
pub fn archive(image: &Image, prefix: &str, member: &str) -> Result<File, LibraryError> {
    let object = object(image, prefix)?;
    let too_large = || LibraryError::TooLarge("the object is larger than an archive can hold".into());
    // Names of up to 15 characters stand in the header; longer ones would need a table, and nobody reads them.
    let short: String = member.chars().filter(char::is_ascii).take(15).collect();
    let symbols: Vec<String> = exported(image, prefix).into_iter().map(|(name, ..)| name).collect();
    let text: usize = symbols.iter().map(|s| s.len() + 1).sum();
    let index_bytes = (4 + 4 * symbols.len() + text).next_multiple_of(2);
    let mut place = MAGIC.len() + MEMBER + index_bytes;
    // The object's own alignment is kept within the file: what maps an archive finds it aligned.
    let filler = (place + MEMBER).next_multiple_of(LINE as usize) - (place + MEMBER);
    let index_bytes = index_bytes + filler;
    place += filler;
    let mut index = Vec::with_capacity(index_bytes);
    index.extend((symbols.len() as u32).to_be_bytes());
    let at = u32::try_from(place).map_err(|_| too_large())?;
    symbols.iter().for_each(|_| index.extend(at.to_be_bytes()));
    for name in &symbols {
        index.extend(name.as_bytes());
        index.push(0);
    }
    index.resize(index_bytes, 0);
    let header = |name: &str, bytes: u64| {
        // Time, owner and group are 0, so that equal archives are equal.
        let line = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{bytes:<10}`\n", 0, 0, 0, 100_644);
        if line.len() == MEMBER { Ok(line) } else { Err(too_large()) }
    };
    let bytes = object.bytes();
    let mut head = MAGIC.to_vec();
    head.extend(header("/", index_bytes as u64)?.bytes());
    head.extend(index);
    head.extend(header(&format!("{short}/"), bytes)?.bytes());
    head.extend(object.head);
    let tail = if bytes.is_multiple_of(2) { vec![] } else { vec![b'\n'] };
    Ok(File { head, weights: object.weights, tail })
}
