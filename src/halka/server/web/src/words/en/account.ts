export default {
  title: "Account",
  lead: "Who you are on this server, its keys, and what is used.",
  empty: "There is nothing to show yet",
  emptyHint: "Keys and use appear here.",
};
