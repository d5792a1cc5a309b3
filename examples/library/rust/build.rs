//! Tells the linker where the model is.

fn main() {
    println!("cargo::rerun-if-env-changed=KILN_LIBRARY");
    let folder = std::env::var("KILN_LIBRARY").expect("KILN_LIBRARY names the folder of libnet.a");
    println!("cargo::rerun-if-changed={folder}/libnet.a");
    println!("cargo::rustc-link-search=native={folder}");
    println!("cargo::rustc-link-lib=static=net");
}
