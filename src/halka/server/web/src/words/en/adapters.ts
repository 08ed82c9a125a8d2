export default {
  title: "Adapters",
  lead: "What was tuned on this base: load, replace, download, delete.",
  empty: "There are no adapters yet",
  emptyHint: "Train one, or upload a folder that peft or Halka wrote.",
};
