export default {
  title: "Train",
  lead: "Tune an adapter on a file of yours, and watch it get better.",
  empty: "Nothing is trained yet",
  emptyHint: "Drop a file with examples: JSONL, CSV, Parquet, or an exported conversation.",
};
