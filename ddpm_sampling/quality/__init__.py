"How good are they? Features, distances, tables and reports."
