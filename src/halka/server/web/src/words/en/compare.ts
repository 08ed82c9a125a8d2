export default {
  title: "Compare",
  lead: "Methods side by side: quality, parameters, memory, forgetting.",
  empty: "There are no comparisons yet",
  emptyHint: "Measure some with halka compare; their reports are browsed here.",
};
