//! Headless Chromium: opening a page, and looking at how it is laid out.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What opening a page brought about.
pub struct Opened {
    /// The document after loading.
    pub dom: String,
    /// Lines that the page or the browser wrote to the console.
    pub console: Vec<String>,
    /// Addresses that the page asked for, but for itself and data in it.
    pub requests: Vec<String>,
}

/// `TRT_OPT_CHROMIUM`, or a Chromium or Chrome on the PATH. A test that needs a browser fails where there is none.
fn chromium() -> PathBuf {
    if let Some(path) = std::env::var_os("TRT_OPT_CHROMIUM") {
        return path.into();
    }
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file());
    found.expect("no Chromium on the PATH: run ci/chromium, or set TRT_OPT_CHROMIUM to one")
}

/// Opens a page in a window of this width.
pub fn open(page: &Path, width: u32) -> Opened {
    let profile = tempfile::tempdir().unwrap();
    let log = profile.path().join("net.json");
    let mut command = Command::new(chromium());
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
        ])
        .args(["--hide-scrollbars", "--enable-logging=stderr", "--v=0"])
        // Nothing leaves this machine, whatever a page asks for.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("--window-size={width},1200"))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()));
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    let dom = String::from_utf8(output.stdout).unwrap();
    assert!(!dom.trim().is_empty(), "{stderr}");
    let console = stderr.lines().filter(|l| l.contains(":CONSOLE")).map(str::to_owned).collect();
    Opened { dom, console, requests: requests(&std::fs::read_to_string(log).unwrap()) }
}

/// The addresses that a log of Chromium's network says were asked for by a page. The browser's own are left out by
/// their scheme and host.
fn requests(log: &str) -> Vec<String> {
    // The browser may be ended before it closes the list.
    let complete = [log.to_owned(), format!("{}]}}", log.trim_end().trim_end_matches(','))];
    let log = complete.iter().find_map(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let log = log.expect("the network log is JSON");
    let mut requests = vec![];
    for event in log["events"].as_array().expect("the network log has events") {
        let Some(url) = event["params"]["url"].as_str() else { continue };
        let own = ["file:", "data:", "chrome", "devtools:", "about:"].iter().any(|s| url.starts_with(s));
        let services = ["google.com", "googleapis.com", "gvt1.com", "gstatic.com"].iter().any(|s| url.contains(s));
        if !own && !services && !requests.iter().any(|r| r == url) {
            requests.push(url.to_owned());
        }
    }
    requests
}

/// Opens a page with a script that measures it, and gives what is wrong: text that overlaps other text, or leaves its
/// drawing, and a page wider than its window.
pub fn layout_faults(page: &Path, width: u32) -> Vec<String> {
    const SCRIPT: &str = include_str!("layout.js");
    let html = std::fs::read_to_string(page).unwrap();
    // The policy of the page forbids scripts.
    let open_to_scripts = html.replace("Content-Security-Policy", "x-none");
    let measured = open_to_scripts.replace("</body>", &format!("<script>{SCRIPT}</script></body>"));
    assert_ne!(measured, open_to_scripts);
    let copy = page.with_file_name("measured.html");
    std::fs::write(&copy, measured).unwrap();
    let opened = open(&copy, width);
    assert_eq!(opened.console, Vec::<String>::new());
    let (_, rest) = opened.dom.rsplit_once("<output id=\"faults\">").expect("the script has run");
    let faults = rest.split("</output>").next().unwrap();
    let (count, faults) = faults.split_once('\n').unwrap();
    let texts: usize = count.strip_prefix("texts ").unwrap().parse().unwrap();
    assert!(texts > 100, "only {texts} texts were looked at");
    faults.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()
}
