//! The plugin ops for people, and whether a plugin library has them.

use serde::Serialize;

use crate::rewrite::ops::{OPS, OpDef, PLUGIN_NAMESPACE, PLUGIN_VERSION, PortDef, TYPES};

#[cfg(feature = "engine")]
pub use checking::{Check, CreatorOf, check};

/// What there is to know of a plugin op, for printing.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    pub name: &'static str,
    pub version: &'static str,
    pub namespace: &'static str,
    pub computes: &'static str,
    pub replaces: &'static str,
    /// All tensors of a node are of one of these.
    pub types: Vec<&'static str>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Port {
    pub name: &'static str,
    pub optional: bool,
    pub doc: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct Attribute {
    pub name: &'static str,
    /// `INT`, `FLOAT`, `STRING`, `INTS[2]`.
    pub r#type: String,
    pub doc: &'static str,
}

/// All plugin ops.
pub fn ops() -> Vec<Op> {
    OPS.iter().copied().map(op).collect()
}

fn op(def: &OpDef) -> Op {
    let ports = |ports: &[PortDef]| {
        ports.iter().map(|p| Port { name: p.name, optional: p.optional, doc: p.doc }).collect::<Vec<_>>()
    };
    Op {
        name: def.name,
        version: PLUGIN_VERSION,
        namespace: PLUGIN_NAMESPACE,
        computes: def.summary,
        replaces: def.replaces,
        types: TYPES.iter().map(|t| t.name()).collect(),
        inputs: ports(def.inputs),
        outputs: ports(def.outputs),
        attributes: def
            .attributes
            .iter()
            .map(|a| Attribute { name: a.name, r#type: a.kind.to_string(), doc: a.doc })
            .collect(),
    }
}

#[cfg(feature = "engine")]
mod checking {
    use std::path::{Path, PathBuf};

    use serde::Serialize;

    use crate::engine::{self, Creator, Field, FieldType, Interface, Library, PluginLibrary, Value};
    use crate::error::{Error, Result};
    use crate::rewrite::ops::{AttributeKind, OPS, OpDef, PLUGIN_NAMESPACE, PLUGIN_VERSION, example};

    /// What was found of a plugin library.
    #[derive(Clone, Debug, Serialize)]
    pub struct Check {
        pub library: PathBuf,
        /// The plugin interface; `None` if it is no plugin library.
        pub interface: Option<String>,
        pub creators: Vec<CreatorOf>,
        /// The TensorRT that loaded the library, if one was asked to.
        pub tensorrt: Option<TensorRt>,
        /// Nothing is wrong if this is empty.
        pub problems: Vec<String>,
    }

    #[derive(Clone, Debug, Serialize)]
    pub struct TensorRt {
        pub path: PathBuf,
        pub version: String,
    }

    /// One creator of the library.
    #[derive(Clone, Debug, Serialize)]
    pub struct CreatorOf {
        pub name: String,
        pub version: String,
        pub namespace: String,
        /// Name and type of each: `grid INTS[2]`.
        pub fields: Vec<String>,
        /// A plugin was made; `None` for creators of other people's ops, whose fields have no known values.
        pub made: Option<bool>,
        /// TensorRT's registry found it and made a plugin; `None` if TensorRT was not asked.
        pub registered: Option<bool>,
    }

    /// Checks that a plugin library has every op with the fields that rewritten models give, and makes a plugin of
    /// each; with `tensorrt`, a library or a folder of one, also through the registry of that TensorRT.
    ///
    /// What is wrong with the plugin library is in [`Check::problems`]. An error is what keeps from looking: a file
    /// that cannot be read, a TensorRT that cannot be loaded.
    pub fn check(library: &Path, tensorrt: Option<&Path>) -> Result<Check> {
        std::fs::File::open(library).map_err(Error::io("read", library))?;
        let mut check =
            Check { library: library.to_owned(), interface: None, creators: vec![], tensorrt: None, problems: vec![] };
        let tensorrt = tensorrt.map(|path| Library::load(Some(path))).transpose()?;
        check.tensorrt =
            tensorrt.as_ref().map(|t| TensorRt { path: t.path().to_owned(), version: t.version.to_string() });
        let plugins = match PluginLibrary::open(library) {
            Ok(plugins) => plugins,
            Err(error) => {
                check.problems.push(error.to_string());
                return Ok(check);
            }
        };
        check.interface = Some(plugins.interface.to_string());
        let Some(creators) = plugins.creators() else {
            check.problems.push(format!(
                "its plugins are of interface {}; this program was compiled for TensorRT {}, which loads interface {}: \
                 build the library with the headers of the TensorRT that will load it",
                plugins.interface,
                engine::compiled_for().major,
                Interface::compiled_for()
            ));
            return Ok(check);
        };
        check.creators(creators);
        if let Some(tensorrt) = &tensorrt {
            check.registry(tensorrt, &plugins.path);
        }
        Ok(check)
    }

    impl Check {
        fn creators(&mut self, creators: &[Creator]) {
            for creator in creators {
                let def = OPS.iter().copied().find(|def| is_of(creator, def));
                let made = def.map(|def| {
                    self.problems.extend(differences(def, creator.fields()));
                    self.keep(creator.make(&fields(def)))
                });
                self.creators.push(CreatorOf {
                    name: creator.name().to_owned(),
                    version: creator.version().to_owned(),
                    namespace: creator.namespace().to_owned(),
                    fields: creator.fields().iter().map(|f| format!("{} {}", f.name, type_of(f))).collect(),
                    made,
                    registered: None,
                });
            }
            for def in OPS.iter().filter(|def| !creators.iter().any(|c| is_of(c, def))) {
                self.problems
                    .push(format!("it has no {}, version {PLUGIN_VERSION}, of namespace {PLUGIN_NAMESPACE}", def.name));
            }
        }

        /// The same creators by the way that TensorRT goes.
        fn registry(&mut self, tensorrt: &Library, plugins: &Path) {
            let registered = match tensorrt.register(plugins) {
                Ok(registered) => registered,
                Err(error) => return self.problems.push(error.to_string()),
            };
            for i in 0..self.creators.len() {
                let CreatorOf { name, version, namespace, .. } = self.creators[i].clone();
                let found = match tensorrt.creator(&name, &version, &namespace) {
                    Ok(Some(creator)) => match OPS.iter().copied().find(|def| is_of(&creator, def)) {
                        Some(def) => self.keep(creator.make(&fields(def))),
                        None => true,
                    },
                    Ok(None) => {
                        let version = tensorrt.version;
                        self.problems.push(format!("TensorRT {version} loads the library and does not know {name}"));
                        false
                    }
                    Err(error) => self.keep(Err(error)),
                };
                self.creators[i].registered = Some(found);
            }
            drop(registered);
        }

        fn keep(&mut self, outcome: engine::Result<()>) -> bool {
            match outcome {
                Ok(()) => true,
                Err(error) => {
                    self.problems.push(error.to_string());
                    false
                }
            }
        }
    }

    fn is_of(creator: &Creator, def: &OpDef) -> bool {
        (creator.name(), creator.version(), creator.namespace()) == (def.name, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    }

    fn type_of(field: &Field) -> String {
        match (field.kind, field.length) {
            (FieldType::Int32, 1) => AttributeKind::Int.to_string(),
            (FieldType::Int32, n) => AttributeKind::Ints(usize::try_from(n).unwrap_or(0)).to_string(),
            (FieldType::Float32, 1) => AttributeKind::Float.to_string(),
            (FieldType::Char, _) => AttributeKind::String.to_string(),
            (FieldType::Float32 | FieldType::Other, _) => "of a type that no op has".to_owned(),
        }
    }

    /// How the creator's fields differ from the op's attributes.
    fn differences(def: &OpDef, fields: &[Field]) -> Vec<String> {
        let mut found = vec![];
        for attribute in def.attributes {
            let expected = attribute.kind.to_string();
            match fields.iter().find(|f| f.name == attribute.name).map(type_of) {
                None => found.push(format!("{}: field '{}' ({expected}) is missing", def.name, attribute.name)),
                Some(is) if is != expected => {
                    found.push(format!("{}: field '{}' is {is}, expected {expected}", def.name, attribute.name));
                }
                Some(_) => {}
            }
        }
        for field in fields {
            if !def.attributes.iter().any(|a| a.name == field.name) {
                found.push(format!("{}: field '{}' ({}) is not of the op", def.name, field.name, type_of(field)));
            }
        }
        found
    }

    /// The op's example as fields.
    fn fields(def: &OpDef) -> Vec<(&'static str, Value)> {
        let attributes = example(def);
        let int = |v: i64| i32::try_from(v).expect("examples are small");
        let value = |name: &str, kind| {
            let a = attributes.iter().find(|a| a.name.as_deref() == Some(name))?;
            Some(match kind {
                AttributeKind::Int => Value::Int32(vec![int(a.i?)]),
                AttributeKind::Ints(_) => Value::Int32(a.ints.iter().copied().map(int).collect()),
                AttributeKind::Float => Value::Float32(a.f?),
                AttributeKind::String => Value::Char(String::from_utf8_lossy(a.s.as_deref()?).into_owned()),
            })
        };
        def.attributes.iter().map(|a| (a.name, value(a.name, a.kind).expect("examples are whole"))).collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn examples_are_whole_and_of_the_right_types() {
            for def in OPS {
                let node = crate::ir::Node { attributes: example(def), ..Default::default() };
                crate::rewrite::ops::check_attributes(def, &node).unwrap();
                assert_eq!(fields(def).len(), def.attributes.len());
            }
        }

        #[test]
        fn differences_of_fields_are_named() {
            let field = |name: &str, kind, length| Field { name: name.into(), kind, length };
            let def = OPS.iter().find(|d| d.name == "TrtOptPatchMerge").unwrap();
            let right = [
                field("rank", FieldType::Int32, 1),
                field("order", FieldType::Int32, 4),
                field("grid", FieldType::Int32, 2),
                field("epsilon", FieldType::Float32, 1),
                field("residual", FieldType::Int32, 1),
            ];
            assert_eq!(differences(def, &right), Vec::<String>::new());
            let mut wrong = right[1..].to_vec();
            wrong[0].length = 3;
            wrong[1].kind = FieldType::Char;
            wrong.push(field("stranger", FieldType::Other, 1));
            assert_eq!(
                differences(def, &wrong),
                [
                    "TrtOptPatchMerge: field 'grid' is STRING, expected INTS[2]",
                    "TrtOptPatchMerge: field 'order' is INTS[3], expected INTS[4]",
                    "TrtOptPatchMerge: field 'rank' (INT) is missing",
                    "TrtOptPatchMerge: field 'stranger' (of a type that no op has) is not of the op",
                ]
            );
        }
    }
}
