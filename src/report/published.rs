//! The benchmark models: how they are written, and the accuracy that was published for them.

/// A model that the report knows.
pub struct Model {
    /// As rows have it.
    pub id: &'static str,
    pub name: &'static str,
    /// Top-1 accuracy on the validation set of ImageNet-1k, trained on ImageNet-1k alone, in percent.
    pub top1: f64,
    /// Who published it.
    pub source: &'static str,
}

/// In the order of tables.
pub const MODELS: [Model; 8] = [
    Model { id: "resnet50", name: "ResNet-50", top1: 76.1, source: "torchvision, weights IMAGENET1K_V1" },
    Model { id: "resnet101", name: "ResNet-101", top1: 77.4, source: "torchvision, weights IMAGENET1K_V1" },
    Model { id: "swin_t", name: "Swin-T", top1: 81.3, source: "Liu et al. 2021, arXiv:2103.14030" },
    Model { id: "swin_s", name: "Swin-S", top1: 83.0, source: "Liu et al. 2021, arXiv:2103.14030" },
    Model { id: "swin_b", name: "Swin-B", top1: 83.5, source: "Liu et al. 2021, arXiv:2103.14030" },
    Model { id: "tnt_s", name: "TNT-S", top1: 81.5, source: "Han et al. 2021, arXiv:2103.00112" },
    Model { id: "ptnt_s", name: "PyramidTNT-S", top1: 82.0, source: "Han et al. 2022, arXiv:2201.00978" },
    Model { id: "uniformer_s", name: "UniFormer-S", top1: 82.9, source: "Li et al. 2022, arXiv:2201.09450" },
];

pub fn find(id: &str) -> Option<&'static Model> {
    MODELS.iter().find(|m| m.id == id)
}

/// The model's name, or its id where it is none of [`MODELS`].
pub fn name(id: &str) -> &str {
    find(id).map_or(id, |m| m.name)
}

/// Sorts models as [`MODELS`] does, others after them by id.
pub fn order(id: &str) -> (usize, &str) {
    (MODELS.iter().position(|m| m.id == id).unwrap_or(MODELS.len()), id)
}
