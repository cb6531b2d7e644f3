//! What suites with a page or a picture of their own share: where it goes, how a picture begins, and how
//! a part of a page that people write is kept up by a program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

/// What the command line says to a suite that writes a page or a picture.
#[derive(Clone, Debug, Args)]
pub struct PageOptions {
    /// Write the pages and pictures into this folder.
    #[arg(long, value_name = "FOLDER")]
    pub docs: Option<PathBuf>,
    /// What they say about the command, the machine and the day.
    #[arg(long, value_name = "TEXT", default_value = "not told")]
    pub provenance: String,
}

/// Begins an SVG picture with its colours for light and dark pages, its ground and its heading.
///
/// What is drawn uses the classes `text`, `faint`, `grid` and `axis`. `title` is read out, `heading` is
/// written at `x`; both may hold any text. The caller appends the rest and `</svg>`.
pub fn begin_picture((width, height): (f64, f64), title: &str, x: f64, heading: &str) -> String {
    let (title, heading) = (escape(title), escape(heading));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"12\">\n\
         <title>{title}</title>\n\
         <style>\
         .ground{{fill:#fff}}.text{{fill:#222}}.faint{{fill:#666}}.grid{{stroke:#ddd}}\
         .axis{{stroke:#666}}\
         @media (prefers-color-scheme:dark){{\
         .ground{{fill:#16181c}}.text{{fill:#e4e4e4}}.faint{{fill:#a8a8a8}}.grid{{stroke:#33363b}}\
         .axis{{stroke:#a8a8a8}}}}\
         </style>\n\
         <rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"text\" x=\"{x}\" y=\"24\" font-size=\"15\">{heading}</text>\n"
    )
}

/// Makes text fit for an element or an attribute of a picture.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Replaces the part of a page that stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
///
/// # Errors
///
/// If the page cannot be read or written, or does not have both marks, each on a line of its own.
pub fn write_section(page: &Path, name: &str, text: &str) -> io::Result<()> {
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", page.display()));
    let old = fs::read_to_string(page).map_err(told)?;
    let new = with_section(&old, name, text).ok_or_else(|| {
        let missing = format!("has no \"<!-- begin {name} -->\" with its \"<!-- end {name} -->\"");
        told(io::Error::new(io::ErrorKind::InvalidData, missing))
    })?;
    fs::write(page, new).map_err(told)
}

fn with_section(page: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{}\n\n{end}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_of_the_page_stays() {
        let page =
            "# Page\n\n<!-- begin a -->\nold\n<!-- end a -->\n\n<!-- begin b -->\n<!-- end b -->\n";
        let once = with_section(page, "a", "new\n").expect("both marks");
        let expected = "# Page\n\n<!-- begin a -->\n\nnew\n\n<!-- end a -->\n\n\
                        <!-- begin b -->\n<!-- end b -->\n";
        assert_eq!(once, expected);
        assert_eq!(with_section(&once, "a", "new"), Some(once), "a second time changes nothing");
    }

    #[test]
    fn a_page_without_the_marks_is_left_as_it_is() {
        for page in ["", "<!-- begin a -->\n", "<!-- end a -->\n<!-- begin a -->\n"] {
            assert_eq!(with_section(page, "a", "new"), None);
        }
        let directory = std::env::temp_dir().join(format!("page-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("writable");
        let page = directory.join("page.md");
        fs::write(&page, "# Page\n").expect("writable");
        let error = write_section(&page, "a", "new").expect_err("no marks").to_string();
        assert!(error.contains("page.md: has no \"<!-- begin a -->\""), "{error}");
        assert_eq!(fs::read_to_string(&page).expect("readable"), "# Page\n");
        fs::remove_dir_all(&directory).expect("writable");
    }
}
