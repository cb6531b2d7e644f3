//! What suites with a page or a picture of their own share: where it goes, and how a picture begins.

use std::path::PathBuf;

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
