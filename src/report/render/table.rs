//! One kind of table for Markdown, HTML and the terminal.

use maud::{Markup, html};

/// A table. The first `text` columns are text, the others numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub caption: String,
    pub text: usize,
    pub header: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
}

/// What a cell's colour says. The text says it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

impl Cell {
    pub fn good(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Good }
    }

    pub fn bad(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Bad }
    }
}

impl Table {
    pub fn new<T: Into<String>>(caption: impl Into<String>, text: usize, header: impl IntoIterator<Item = T>) -> Self {
        Self { caption: caption.into(), text, header: header.into_iter().map(Into::into).collect(), rows: vec![] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.header.len(), "{}", self.caption);
        self.rows.push(cells);
    }

    /// Leaves out columns in which no row has anything, but never one of text.
    pub fn without_empty(mut self) -> Self {
        let empty = |c: usize| self.rows.iter().all(|r| r[c].text.is_empty() || r[c].text == super::format::NONE);
        for column in (self.text..self.header.len()).rev().filter(|c| empty(*c)).collect::<Vec<_>>() {
            self.header.remove(column);
            self.rows.iter_mut().for_each(|r| drop(r.remove(column)));
        }
        self
    }

    /// As Markdown, with the caption above.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("{}\n\n", escape(&self.caption));
        text += &line(self.header.iter().map(|h| escape(h)).collect());
        let rule = |c: usize| if c < self.text { "---".to_owned() } else { "---:".to_owned() };
        text += &line((0..self.header.len()).map(rule).collect());
        for row in &self.rows {
            let cell = |c: &Cell| match c.tone {
                Tone::Bad => format!("**{}**", escape(&c.text)),
                _ => escape(&c.text),
            };
            text += &line(row.iter().map(cell).collect());
        }
        text
    }

    pub fn html(&self) -> Markup {
        html! {
            div.table-box tabindex="0" role="region" aria-label=(self.caption) {
                table {
                    caption { span { (self.caption) } }
                    thead {
                        tr {
                            @for (i, name) in self.header.iter().enumerate() {
                                th scope="col" .num[i >= self.text] { (name) }
                            }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (i, cell) in row.iter().enumerate() {
                                    @let (good, bad) = (cell.tone == Tone::Good, cell.tone == Tone::Bad);
                                    @let short = i < self.text && cell.text.chars().count() <= 32;
                                    @if i == 0 {
                                        th scope="row" .short[short] .good[good] .bad[bad] { (cell.text) }
                                    } @else {
                                        td .num[i >= self.text] .short[short] .good[good] .bad[bad] { (cell.text) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Text that Markdown takes as it is, in a table too.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '*' | '_' | '`' | '\\' | '[' | ']' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("A <caption>", 1, ["name", "us", "nothing"]);
        table.row(["a|b <i>".into(), Cell::bad("1"), "–".into()]);
        table.row(["c".into(), Cell::good("2"), "".into()]);
        table
    }

    #[test]
    fn markdown_keeps_text_as_it_is() {
        let expected = "A &lt;caption&gt;\n\n| name | us |\n| --- | ---: |\n| a\\|b &lt;i&gt; | **1** |\n| c | 2 |\n";
        assert_eq!(table().without_empty().markdown(), expected);
    }

    #[test]
    fn html_is_escaped_and_says_what_heads_what() {
        let html = table().html().into_string();
        assert!(html.contains("<caption><span>A &lt;caption&gt;</span></caption>"), "{html}");
        assert!(html.contains(r#"<th class="short" scope="row">a|b &lt;i&gt;</th>"#), "{html}");
        assert!(html.contains(r#"<td class="num bad">1</td>"#), "{html}");
        assert_eq!(html.matches("scope=\"col\"").count(), 3);
    }
}
