export default {
  title: "Advise",
  lead: "Which method suits your data and this machine, by short probes.",
  empty: "No advice was asked for yet",
  emptyHint: "Give it your data, and it tries the methods for some minutes.",
};
