"""The inventory of entity types: keys, names and definitions in both languages, default sets, corpus mappings.

The name in the language of the text is what models see and write; large models also get the definition in their
prompt. Where the guidelines of two corpora in one language differ, they map to types with different keys: the type's
name tells the model which guideline to follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import DocumentError
from shared.messages import LANGS, Lang, Segment


@dataclass(frozen=True, slots=True)
class EntityType:
    """One type of mention."""

    key: str
    en: str
    zh: str
    definition_en: str
    definition_zh: str

    def name(self, lang: Lang) -> str:
        """The name in the language of a text, as models see it."""
        return self.zh if lang == "zh" else self.en

    def definition(self, lang: Lang) -> str:
        """One sentence in the language of a text."""
        return self.definition_zh if lang == "zh" else self.definition_en


_TYPES = (
    EntityType("protein", "Protein", "蛋白质", "A protein, protein family, complex, subunit or domain.", "蛋白质、蛋白家族、复合物、亚基或结构域。"),
    EntityType("dna", "DNA", "脱氧核糖核酸", "A DNA molecule, gene, promoter, element or region.", "DNA分子、基因、启动子、元件或区域。"),
    EntityType("rna", "RNA", "核糖核酸", "An RNA molecule, transcript or RNA family.", "RNA分子、转录本或RNA家族。"),
    EntityType("cell_line", "Cell line", "细胞系", "A cultured or immortalised line of cells.", "体外培养或永生化的细胞系。"),
    EntityType("cell_type", "Cell type", "细胞类型", "A kind of naturally occurring cell.", "天然存在的细胞种类。"),
    EntityType("chemical", "Chemical", "化学物质", "A chemical, drug, ion or other small molecule.", "化学物质、药物、离子或其他小分子。"),
    EntityType("disease", "Disease", "疾病", "A disease, syndrome, injury, or in English text also a symptom or abnormal finding.", "疾病、综合征、损伤或中毒。"),
    EntityType("symptom", "Symptom", "临床表现", "A symptom, sign or clinical finding.", "症状、体征或其他临床表现。"),
    EntityType("procedure", "Procedure", "医疗程序", "An examination, operation or treatment procedure.", "检查、手术或治疗等医疗程序。"),
    EntityType("equipment", "Equipment", "医疗设备", "A medical device or instrument.", "用于检查或治疗的医疗器械与设备。"),
    EntityType("drug", "Drug", "药物", "A medicine, vaccine or other substance given to treat or prevent.", "用于治疗或预防的药品、疫苗等物质。"),
    EntityType("test_item", "Laboratory item", "医学检验项目", "A quantity measured in a laboratory or physical test.", "检验或体格检查所测的项目。"),
    EntityType("body", "Body part", "身体", "A body part, organ, tissue, cell or body substance.", "身体部位、器官、组织、细胞或体内物质。"),
    EntityType("department", "Department", "科室", "A department of a hospital.", "医院的科室。"),
    EntityType("microorganism", "Microorganism", "微生物类", "A bacterium, virus, fungus or parasite.", "细菌、病毒、真菌、寄生虫等微生物。"),
    EntityType("gene_product", "Gene or gene product", "基因或基因产物", "A gene, RNA or protein, not told apart.", "基因、RNA或蛋白质，不加区分。"),
    EntityType("cancer", "Cancer", "癌症", "A malignant or benign tumour.", "恶性或良性肿瘤。"),
    EntityType("cell", "Cell", "细胞", "A cell, cell type or cell line, not told apart.", "细胞、细胞类型或细胞系，不加区分。"),
    EntityType("organism", "Organism", "生物体", "A species, strain, patient or other organism.", "物种、菌株、患者或其他生物体。"),
    EntityType("simple_chemical", "Simple chemical", "简单化学物质", "A chemical that is not a gene product.", "不属于基因产物的化学物质。"),
    EntityType("multi_tissue_structure", "Multi-tissue structure", "多组织结构", "A structure of several tissues, such as a blood vessel.", "由多种组织构成的结构，如血管。"),
    EntityType("organ", "Organ", "器官", "A whole organ.", "完整的器官。"),
    EntityType("organism_subdivision", "Organism subdivision", "生物体分区", "A region of the body, such as head or limb.", "身体的区域，如头部或肢体。"),
    EntityType("tissue", "Tissue", "组织", "A tissue, such as muscle or epithelium.", "组织，如肌肉或上皮。"),
    EntityType("immaterial_anatomical_entity", "Immaterial anatomical entity", "非物质解剖实体", "A cavity, lumen or other space of the body.", "体腔、管腔等身体空间。"),
    EntityType("organism_substance", "Organism substance", "生物体物质", "A body fluid or secretion.", "体液或分泌物。"),
    EntityType("cellular_component", "Cellular component", "细胞成分", "A part of a cell.", "细胞的组成部分。"),
    EntityType("pathological_formation", "Pathological formation", "病理结构", "An abnormal structure, such as a lesion or plaque.", "病变、斑块等异常结构。"),
    EntityType("amino_acid", "Amino acid", "氨基酸", "An amino acid or residue.", "氨基酸或其残基。"),
    EntityType("anatomical_system", "Anatomical system", "解剖系统", "A system of organs, such as the nervous system.", "器官系统，如神经系统。"),
    EntityType("developing_anatomical_structure", "Developing anatomical structure", "发育中的解剖结构", "An embryo or a structure of one.", "胚胎或其结构。"),
    EntityType("record_body", "Record body part", "病历身体部位", "A body part named in a hospital record.", "病历中的身体部位。"),
    EntityType("record_symptom", "Record symptom", "病历症状体征", "A symptom or sign named in a hospital record.", "病历中的症状与体征。"),
    EntityType("record_test", "Record test", "病历检查检验", "An examination or test named in a hospital record.", "病历中的检查与检验。"),
    EntityType("record_disease", "Record disease", "病历疾病诊断", "A diagnosis named in a hospital record.", "病历中的疾病与诊断。"),
    EntityType("record_treatment", "Record treatment", "病历治疗", "A treatment or drug named in a hospital record.", "病历中的治疗与用药。"),
    EntityType("drug_efficacy", "Drug efficacy", "药物功效", "What a traditional medicine does.", "中药的功效。"),
    EntityType("drug_syndrome", "Syndrome", "证候", "A syndrome of traditional medicine.", "中医证候。"),
    EntityType("leaflet_symptom", "Leaflet symptom", "说明书症状", "A symptom named in a drug leaflet.", "药品说明书中的症状。"),
    EntityType("person_group", "Person group", "人群", "A group of people, such as the pregnant.", "人群，如孕妇。"),
    EntityType("drug_dosage", "Dosage form", "药物剂型", "A dosage form, such as a tablet.", "药物剂型，如片剂。"),
    EntityType("drug_taste", "Drug taste", "药物性味", "Taste, smell or look of a drug.", "药物的性味与性状。"),
    EntityType("food_group", "Food group", "食物分组", "A group of foods, such as spicy food.", "食物类别，如辛辣食物。"),
    EntityType("disease_group", "Disease group", "疾病分组", "A group of diseases.", "疾病类别，如慢性病。"),
    EntityType("leaflet_disease", "Leaflet disease", "说明书疾病", "A disease named in a drug leaflet.", "药品说明书中的疾病。"),
    EntityType("drug_group", "Drug group", "药物分组", "A group of drugs.", "药物类别。"),
    EntityType("drug_ingredient", "Drug ingredient", "药物成分", "An ingredient of a drug.", "药物的成分。"),
    EntityType("food", "Food", "食物", "A food.", "食物。"),
    EntityType("leaflet_drug", "Leaflet drug", "说明书药物", "A drug named in a leaflet.", "药品说明书中的药物。"),
)  # fmt: skip

TYPES: dict[str, EntityType] = {t.key: t for t in _TYPES}

DEFAULTS: dict[Lang, tuple[str, ...]] = {
    "en": ("chemical", "disease", "protein", "dna", "rna", "cell_line", "cell_type"),
    "zh": (
        "disease", "symptom", "procedure", "equipment", "drug", "test_item", "body", "department", "microorganism",
    ),
}  # fmt: skip

# Corpus folder name -> label in the corpus -> canonical key.
CORPUS_TYPES: dict[str, dict[str, str]] = {
    "genia": {"protein": "protein", "DNA": "dna", "RNA": "rna", "cell_line": "cell_line", "cell_type": "cell_type"},
    "bc5cdr": {"Chemical": "chemical", "Disease": "disease"},
    "cmeee_v2": {
        "dis": "disease", "sym": "symptom", "pro": "procedure", "equ": "equipment", "dru": "drug", "ite": "test_item",
        "bod": "body", "dep": "department", "mic": "microorganism",
    },
    "bionlp13cg": {
        "Gene_or_gene_product": "gene_product", "Cancer": "cancer", "Cell": "cell", "Organism": "organism",
        "Simple_chemical": "simple_chemical", "Multi-tissue_structure": "multi_tissue_structure", "Organ": "organ",
        "Organism_subdivision": "organism_subdivision", "Tissue": "tissue",
        "Immaterial_anatomical_entity": "immaterial_anatomical_entity", "Organism_substance": "organism_substance",
        "Cellular_component": "cellular_component", "Pathological_formation": "pathological_formation",
        "Amino_acid": "amino_acid", "Anatomical_system": "anatomical_system",
        "Developing_anatomical_structure": "developing_anatomical_structure",
    },
    "ccks2017": {
        "BODY": "record_body", "SYMPTOM": "record_symptom", "TEST": "record_test", "DISEASE": "record_disease",
        "TREATMENT": "record_treatment",
    },
    "drug_leaflets_zh": {
        "DRUG_EFFICACY": "drug_efficacy", "SYNDROME": "drug_syndrome", "SYMPTOM": "leaflet_symptom",
        "PERSON_GROUP": "person_group", "DRUG_DOSAGE": "drug_dosage", "DRUG_TASTE": "drug_taste",
        "FOOD_GROUP": "food_group", "DISEASE_GROUP": "disease_group", "DISEASE": "leaflet_disease",
        "DRUG_GROUP": "drug_group", "DRUG_INGREDIENT": "drug_ingredient", "FOOD": "food", "DRUG": "leaflet_drug",
    },
}  # fmt: skip


def get(key: str) -> EntityType:
    """The type with a key. Raises KeyError, naming the remedy, if there is none."""
    try:
        return TYPES[key]
    except KeyError:
        raise KeyError(f"types: unknown entity type; the known ones are {', '.join(sorted(TYPES))}") from None


def definitions() -> list[Segment]:
    """The definitions of all types in both languages as segments: biomedical text that is always available.

    The document id is the type's key.
    """
    found = []
    for key, entity_type in TYPES.items():
        for lang in LANGS:
            text = entity_type.definition(lang)
            found.append(Segment(document_id=key, index=0, start=0, end=len(text), text=text, lang=lang))
    return found


def check(types: Sequence[str]) -> None:
    """Raises DocumentError if no types are requested, or one is not in the inventory."""
    remedy = f"ask for some of {', '.join(TYPES)}, or leave `types` out for the default set of the language"
    if not types:
        raise DocumentError("types", "is empty", remedy)
    for position, key in enumerate(types):
        if key not in TYPES:
            problem = f"holds no known entity type at position {position}"
            raise DocumentError("types", problem, remedy, reason="unknown_type")


def key_of(label: str) -> str | None:
    """The key of a type given by key or name, ignoring case, hyphens and underscores; None if unknown."""
    plain = _plain(label)
    return next((t.key for t in _TYPES if plain in (_plain(t.key), _plain(t.en), _plain(t.zh))), None)


def _plain(label: str) -> str:
    return label.casefold().replace(" ", "_").replace("-", "_")
